// Short vectors: the compilers' vector types, and the few operations on them that need a name.
//
// The kernels are compiled without contraction of a * b + c: coordinates must round as the reference's do, since a
// weight of exactly 0 means something. Where a fused multiply-add is wanted it is written.
#ifndef DEFORM_ATTN_SIMD_H
#define DEFORM_ATTN_SIMD_H

#include <stdint.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define NOT_INLINE __attribute__((noinline))

namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class T, int n>
struct VectorOf {
    typedef T type __attribute__((vector_size(n * sizeof(T))));
};
template <class T, int n>
using Vector = typename VectorOf<T, n>::type;

// What belongs to a compute type F: lanes of a full vector, the integers of the same width, and how far F holds every
// integer exactly.
template <class F>
struct Wide;
template <>
struct Wide<float> {
    static constexpr int lanes = vector_bytes / 4;
    using Int = int32_t;
    static constexpr int64_t exact = int64_t(1) << 24;
};
template <>
struct Wide<double> {
    static constexpr int lanes = vector_bytes / 8;
    using Int = int64_t;
    static constexpr int64_t exact = int64_t(1) << 53;
};

template <class V, class T>
INLINE V load(const T *from) {
    V vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

template <class V, class T>
INLINE void store(T *to, V vector) {
    __builtin_memcpy(to, &vector, sizeof vector);
}

template <class V, class F>
INLINE V broadcast(F number) {
    return number - V{};  // not + : -0 stays -0
}

// a * b + c, fused where the machine can.
template <class V>
INLINE V multiply_add(V a, V b, V c) {
    return a * b + c;
}
#if defined(__FMA__)
template <>
INLINE Vector<float, 4> multiply_add(Vector<float, 4> a, Vector<float, 4> b, Vector<float, 4> c) {
    return (Vector<float, 4>)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
}
template <>
INLINE Vector<float, 8> multiply_add(Vector<float, 8> a, Vector<float, 8> b, Vector<float, 8> c) {
    return (Vector<float, 8>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
template <>
INLINE Vector<double, 2> multiply_add(Vector<double, 2> a, Vector<double, 2> b, Vector<double, 2> c) {
    return (Vector<double, 2>)_mm_fmadd_pd((__m128d)a, (__m128d)b, (__m128d)c);
}
template <>
INLINE Vector<double, 4> multiply_add(Vector<double, 4> a, Vector<double, 4> b, Vector<double, 4> c) {
    return (Vector<double, 4>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#if defined(__AVX512F__)
template <>
INLINE Vector<float, 16> multiply_add(Vector<float, 16> a, Vector<float, 16> b, Vector<float, 16> c) {
    return (Vector<float, 16>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
template <>
INLINE Vector<double, 8> multiply_add(Vector<double, 8> a, Vector<double, 8> b, Vector<double, 8> c) {
    return (Vector<double, 8>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#endif
#elif defined(__ARM_NEON) && defined(__aarch64__)
template <>
INLINE Vector<float, 4> multiply_add(Vector<float, 4> a, Vector<float, 4> b, Vector<float, 4> c) {
    return (Vector<float, 4>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
template <>
INLINE Vector<double, 2> multiply_add(Vector<double, 2> a, Vector<double, 2> b, Vector<double, 2> c) {
    return (Vector<double, 2>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#endif

// The larger and the smaller of each two lanes; b where one of them is NaN.
template <class V>
INLINE V larger_lanes(V a, V b) {
#if defined(__AVX2__)
    if constexpr (sizeof(V) == 32 && sizeof(a[0]) == 4) return (V)_mm256_max_ps((__m256)a, (__m256)b);
#endif
    return a > b ? a : b;
}
template <class V>
INLINE V smaller_lanes(V a, V b) {
#if defined(__AVX2__)
    if constexpr (sizeof(V) == 32 && sizeof(a[0]) == 4) return (V)_mm256_min_ps((__m256)a, (__m256)b);
#endif
    return a < b ? a : b;
}

// Whether any lane of a comparison holds.
template <class I>
INLINE bool any_lane(I bad) {
#if defined(__AVX2__)
    if constexpr (sizeof(I) == 32) return _mm256_movemask_epi8((__m256i)bad) != 0;
#endif
#if defined(__SSE2__)
    if constexpr (sizeof(I) == 16) return _mm_movemask_epi8((__m128i)bad) != 0;
#endif
#if defined(__AVX512DQ__)
    if constexpr (sizeof(I) == 64) return _mm512_movepi32_mask((__m512i)bad) != 0;
#endif
    int64_t any = 0;
    for (int i = 0; i < int(sizeof(I) / sizeof(bad[0])); ++i) any |= bad[i];
    return any != 0;
}

// Whether any lane is infinite or NaN.
template <class V>
INLINE bool any_not_finite(V a) {
    return any_lane((a - a) != (a - a));
}

// A number for the compiler: as the argument of a function, a constant in its body.
template <int n>
struct Constant {
    static constexpr int value = n;
};

// The largest integer <= x, for |x| that fit an integer of x's width.
template <class F, int n>
INLINE Vector<F, n> floor_of(Vector<F, n> x, Vector<typename Wide<F>::Int, n> &integer) {
    using I = Vector<typename Wide<F>::Int, n>;
#if defined(__AVX2__)
    if constexpr (sizeof x == 32 && sizeof(F) == 4) {
        const __m256 whole = _mm256_floor_ps((__m256)x);
        integer = (I)_mm256_cvtps_epi32(whole);
        return (Vector<F, n>)whole;
    }
#endif
    integer = __builtin_convertvector(x, I);
    integer += __builtin_convertvector(integer, Vector<F, n>) > x;  // true is -1
    return __builtin_convertvector(integer, Vector<F, n>);
}

}  // namespace

#endif
