// The number formats: bfloat16 and float16 from and to float, and arrays whose format is known only at run time.
#ifndef DEFORM_ATTN_FORMATS_H
#define DEFORM_ATTN_FORMATS_H

#include "deform_attn.h"
#include "simd.h"

namespace {

struct BFloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

INLINE float to_number(float x) { return x; }
INLINE double to_number(double x) { return x; }

INLINE float to_number(BFloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float number;
    __builtin_memcpy(&number, &bits, 4);
    return number;
}

INLINE float to_number(Float16 x) {
    // Shifted into place, the exponent is too small by 112; the multiplication mends subnormal numbers, too.
    uint32_t bits = uint32_t(x.bits & 0x7fff) << 13;
    float number;
    __builtin_memcpy(&number, &bits, 4);
    number *= 0x1p112f;
    __builtin_memcpy(&bits, &number, 4);
    if ((x.bits & 0x7c00) == 0x7c00) bits |= 0x7f800000;
    bits |= uint32_t(x.bits & 0x8000) << 16;
    __builtin_memcpy(&number, &bits, 4);
    return number;
}

template <class F>
INLINE void from_number(F x, float &to) {
    to = float(x);
}
template <class F>
INLINE void from_number(F x, double &to) {
    to = x;
}

template <class F>
INLINE void from_number(F x, BFloat16 &to) {
    const float number = float(x);
    uint32_t bits;
    __builtin_memcpy(&bits, &number, 4);
    to.bits = number != number ? uint16_t(bits >> 16 | 0x40) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class F>
INLINE void from_number(F x, Float16 &to) {
    const float number = float(x);
    uint32_t bits;
    __builtin_memcpy(&bits, &number, 4);
    const uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) {
        to.bits = uint16_t(sign | 0x7e00);  // NaN
    } else if (bits >= 0x477ff000) {
        to.bits = uint16_t(sign | 0x7c00);  // rounds to infinity
    } else if (bits < 0x38800000) {
        // Subnormal: adding 1/2 leaves the multiple of 2^-24 in the lowest bits, rounded to even.
        float small;
        __builtin_memcpy(&small, &bits, 4);
        small += 0.5f;
        __builtin_memcpy(&bits, &small, 4);
        to.bits = uint16_t(sign | (bits - 0x3f000000));
    } else {
        to.bits = uint16_t(sign | ((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13));
    }
}

inline int64_t bytes_of(int64_t dtype) {
    return dtype == DEFORM_ATTN_FLOAT64 ? 8 : dtype == DEFORM_ATTN_FLOAT32 ? 4 : 2;
}

// Numbers of a format known only at run time: the points, weights and references of a call.
struct Array {
    const void *data;
    int64_t dtype;

    template <class F>
    void read(int64_t offset, int64_t count, F *to) const {
        switch (dtype) {
            case DEFORM_ATTN_FLOAT32: return read_as<float>(offset, count, to);
            case DEFORM_ATTN_FLOAT64: return read_as<double>(offset, count, to);
            case DEFORM_ATTN_BFLOAT16: return read_as<BFloat16>(offset, count, to);
            default: return read_as<Float16>(offset, count, to);
        }
    }

    template <class V, class F>
    void read_as(int64_t offset, int64_t count, F *to) const {
        const V *from = static_cast<const V *>(data) + offset;
        for (int64_t i = 0; i < count; ++i) to[i] = F(to_number(from[i]));
    }

    // The numbers themselves where they are of type F, else a copy of them.
    template <class F>
    const F *view(int64_t offset, int64_t count, F *copy) const {
        if (dtype == (sizeof(F) == 4 ? DEFORM_ATTN_FLOAT32 : DEFORM_ATTN_FLOAT64)) {
            return static_cast<const F *>(data) + offset;
        }
        read(offset, count, copy);
        return copy;
    }
};

template <class V, class F>
void write_as(void *data, int64_t offset, int64_t count, const F *from) {
    V *to = static_cast<V *>(data) + offset;
    for (int64_t i = 0; i < count; ++i) from_number(from[i], to[i]);
}

template <class F>
void write_numbers(void *data, int64_t dtype, int64_t offset, int64_t count, const F *from) {
    switch (dtype) {
        case DEFORM_ATTN_FLOAT32: return write_as<float>(data, offset, count, from);
        case DEFORM_ATTN_FLOAT64: return write_as<double>(data, offset, count, from);
        case DEFORM_ATTN_BFLOAT16: return write_as<BFloat16>(data, offset, count, from);
        default: return write_as<Float16>(data, offset, count, from);
    }
}

}  // namespace

#endif
