// What is wrong with the arguments of a call, in the words of the Python package's messages.
#ifndef DEFORM_ATTN_FAULT_H
#define DEFORM_ATTN_FAULT_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

namespace {

// A text of one line. What does not fit is cut off.
class Fault {
public:
    const char *text() const { return text_; }

#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    void add(const char *format, ...) {
        va_list values;
        va_start(values, format);
        const int written = vsnprintf(text_ + length_, sizeof text_ - length_, format, values);
        va_end(values);
        if (written > 0) length_ += written;
        if (length_ >= sizeof text_) end_at(sizeof text_ - 1);
    }

    // A text of a stranger, of which no more than `most` bytes are shown.
    void add_text(const char *text, size_t most) {
        const size_t begin = length_;
        add("%s", text);
        if (length_ - begin > most) end_at(begin + most);
    }

    // A shape, as in "[2, 3]".
    void add_shape(const int64_t *sizes, int64_t rank) {
        for (int64_t axis = 0; axis < rank; ++axis) add(axis ? ", %lld" : "[%lld", static_cast<long long>(sizes[axis]));
        add(rank ? "]" : "[]");
    }

private:
    // Cuts the text off, before a last character of several bytes, which may not be whole.
    void end_at(size_t length) {
        while (length > 0 && kind(length - 1) == 0x80) --length;
        if (length > 0 && kind(length - 1) == 0xC0) --length;
        text_[length] = 0;
        length_ = length;
    }

    int kind(size_t i) const { return static_cast<unsigned char>(text_[i]) & 0xC0; }

    char text_[1024] = {};
    size_t length_ = 0;
};

}  // namespace

#endif
