// The number formats of value: how blocks of channels are read into vectors of the compute type, and written.
#ifndef DEFORM_ATTN_NUMBERS_H
#define DEFORM_ATTN_NUMBERS_H

#include "deform_attn.h"
#include "vectors.h"

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

// n channels of type V as a vector of the compute type F.
template <class V, class F, int n>
struct Block {
    using Value = V;
    using Number = F;
    using Vec = Vector<F, n>;
    static constexpr int lanes = n;
    static INLINE Vec read(const V *from) {
        if constexpr (sizeof(V) == sizeof(F)) return load<Vec>(from);
        Vec vector;
        for (int i = 0; i < n; ++i) vector[i] = to_number(from[i]);
        return vector;
    }
    static INLINE void write(V *to, Vec from) {
        if constexpr (sizeof(V) == sizeof(F)) return store(to, from);
        for (int i = 0; i < n; ++i) from_number(F(from[i]), to[i]);
    }
};

// bfloat16 is the upper half of a float.
template <int n>
struct BFloat16Block {
    using Value = BFloat16;
    using Number = float;
    using Vec = Vector<float, n>;
    using Bits = Vector<uint32_t, n>;
    using Halves = Vector<uint16_t, n>;
    static constexpr int lanes = n;
    static INLINE Vec read(const BFloat16 *from) {
        return (Vec)(__builtin_convertvector(load<Halves>(from), Bits) << 16);
    }
    static INLINE void write(BFloat16 *to, Vec from) {
        const Bits bits = (Bits)from;
        const Bits rounded = from != from ? (bits | 0x400000u) : bits + 0x7fffu + (bits >> 16 & 1u);
        store(to, __builtin_convertvector(rounded >> 16, Halves));
    }
};
template <>
struct Block<BFloat16, float, 16> : BFloat16Block<16> {};
template <>
struct Block<BFloat16, float, 8> : BFloat16Block<8> {};
template <>
struct Block<BFloat16, float, 4> : BFloat16Block<4> {};

#if defined(__F16C__)
template <>
struct Block<Float16, float, 4> {
    using Value = Float16;
    using Number = float;
    using Vec = Vector<float, 4>;
    static constexpr int lanes = 4;
    static INLINE Vec read(const Float16 *from) {
        return (Vec)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)from));
    }
    static INLINE void write(Float16 *to, Vec from) {
        _mm_storel_epi64((__m128i *)to, _mm_cvtps_ph((__m128)from, _MM_FROUND_TO_NEAREST_INT));
    }
};

template <>
struct Block<Float16, float, 8> {
    using Value = Float16;
    using Number = float;
    using Vec = Vector<float, 8>;
    static constexpr int lanes = 8;
    static INLINE Vec read(const Float16 *from) {
        return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
    }
    static INLINE void write(Float16 *to, Vec from) {
        _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)from, _MM_FROUND_TO_NEAREST_INT));
    }
};
#endif
#if defined(__AVX512F__)
template <>
struct Block<Float16, float, 16> {
    using Value = Float16;
    using Number = float;
    using Vec = Vector<float, 16>;
    static constexpr int lanes = 16;
    static INLINE Vec read(const Float16 *from) {
        return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
    }
    static INLINE void write(Float16 *to, Vec from) {
        _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)from, _MM_FROUND_TO_NEAREST_INT));
    }
};
#endif

// Float16 without an instruction for it: the same bit trick as to_number, on n numbers at once.
#if !defined(__F16C__)
template <>
struct Block<Float16, float, 4> {
    using Value = Float16;
    using Number = float;
    using Vec = Vector<float, 4>;
    static constexpr int lanes = 4;
    static INLINE Vec read(const Float16 *from) {
        using Bits = Vector<uint32_t, 4>;
        const Bits half = __builtin_convertvector((load<Vector<uint16_t, 4>>(from)), Bits);
        const Bits number = (Bits)((Vec)((half & 0x7fffu) << 13) * 0x1p112f);
        const Bits special = (Bits)((half & 0x7c00u) == 0x7c00u) & 0x7f800000u;
        return (Vec)(number | special | (half & 0x8000u) << 16);
    }
    static INLINE void write(Float16 *to, Vec from) {
        for (int i = 0; i < 4; ++i) from_number(float(from[i]), to[i]);
    }
};
#endif

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
