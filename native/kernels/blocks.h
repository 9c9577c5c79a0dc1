// Blocks: a few channels of a pixel as a vector of the compute type, whatever format they have in memory.
#ifndef DEFORM_ATTN_BLOCKS_H
#define DEFORM_ATTN_BLOCKS_H

#include "formats.h"

namespace {

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

// float16 by the machine's instruction where it has one for n numbers, else by the bit trick of to_number.
template <int n>
struct Float16Block {
    using Value = Float16;
    using Number = float;
    using Vec = Vector<float, n>;
    using Bits = Vector<uint32_t, n>;
    using Halves = Vector<uint16_t, n>;
    static constexpr int lanes = n;
    static INLINE Vec read(const Float16 *from) {
#if defined(__AVX512F__)
        if constexpr (n == 16) return (Vec)_mm512_cvtph_ps(load<__m256i>(from));
#endif
#if defined(__F16C__)
        if constexpr (n == 8) return (Vec)_mm256_cvtph_ps(load<__m128i>(from));
        if constexpr (n == 4) return (Vec)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)from));
#endif
        const Bits half = __builtin_convertvector(load<Halves>(from), Bits);
        const Bits number = (Bits)((Vec)((half & 0x7fffu) << 13) * 0x1p112f);
        const Bits special = (Bits)((half & 0x7c00u) == 0x7c00u) & 0x7f800000u;
        return (Vec)(number | special | (half & 0x8000u) << 16);
    }
    static INLINE void write(Float16 *to, Vec from) {
#if defined(__AVX512F__)
        if constexpr (n == 16) return store(to, _mm512_cvtps_ph((__m512)from, _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(__F16C__)
        if constexpr (n == 8) return store(to, _mm256_cvtps_ph((__m256)from, _MM_FROUND_TO_NEAREST_INT));
        if constexpr (n == 4) {
            return _mm_storel_epi64((__m128i *)to, _mm_cvtps_ph((__m128)from, _MM_FROUND_TO_NEAREST_INT));
        }
#endif
        for (int i = 0; i < n; ++i) from_number(float(from[i]), to[i]);
    }
};
template <>
struct Block<Float16, float, 16> : Float16Block<16> {};
template <>
struct Block<Float16, float, 8> : Float16Block<8> {};
template <>
struct Block<Float16, float, 4> : Float16Block<4> {};

}  // namespace

#endif
