// A few whole numbers, such as the sizes of the levels; many only where a caller has that many levels.
#ifndef DEFORM_ATTN_NUMBERS_H
#define DEFORM_ATTN_NUMBERS_H

#include <stdint.h>
#include <stdlib.h>

namespace {

class Numbers {
public:
    Numbers() = default;
    Numbers(const Numbers &) = delete;
    Numbers &operator=(const Numbers &) = delete;
    ~Numbers() { free(many_); }

    // Makes room for `count` numbers, whatever they are; false where there is no memory for them.
    bool resize(int64_t count) {
        if (count > few) {
            free(many_);
            many_ = static_cast<int64_t *>(malloc(static_cast<size_t>(count) * sizeof(int64_t)));
            if (!many_) return false;
        }
        count_ = count;
        return true;
    }

    int64_t count() const { return count_; }
    int64_t *begin() { return many_ ? many_ : few_; }
    const int64_t *begin() const { return many_ ? many_ : few_; }
    int64_t &operator[](int64_t i) { return begin()[i]; }
    int64_t operator[](int64_t i) const { return begin()[i]; }

private:
    static constexpr int64_t few = 32;
    int64_t few_[few];
    int64_t *many_ = nullptr;
    int64_t count_ = 0;
};

}  // namespace

#endif
