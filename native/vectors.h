// Short vectors: the compilers' vector types, and the few operations on them that need a name.
//
// The kernels are compiled without contraction of a * b + c: coordinates must round as the reference's do, since a
// weight of exactly 0 means something. Where a fused multiply-add is wanted it is written.
#ifndef DEFORM_ATTN_VECTORS_H
#define DEFORM_ATTN_VECTORS_H

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

// The vector with its lanes moved on by half of them, a quarter of them, ...: step 0, 1, ...
template <int step, class F, int n>
INLINE Vector<F, n> folded(Vector<F, n> v) {
    constexpr int by = n >> (step + 1);
    if constexpr (n == 2) return __builtin_shufflevector(v, v, 1, 0);
    if constexpr (n == 4) {
        return __builtin_shufflevector(v, v, by & 3, (1 + by) & 3, (2 + by) & 3, (3 + by) & 3);
    }
    if constexpr (n == 8) {
        return __builtin_shufflevector(v, v, by, (1 + by) & 7, (2 + by) & 7, (3 + by) & 7, (4 + by) & 7, (5 + by) & 7,
                                       (6 + by) & 7, (7 + by) & 7);
    }
    if constexpr (n == 16) {
        return __builtin_shufflevector(v, v, by, 1 + by, 2 + by, 3 + by, 4 + by, 5 + by, 6 + by, 7 + by, (8 + by) & 15,
                                       (9 + by) & 15, (10 + by) & 15, (11 + by) & 15, (12 + by) & 15, (13 + by) & 15,
                                       (14 + by) & 15, (15 + by) & 15);
    }
    return v;
}

template <class F, int n, int step = 0>
INLINE F sum_of_lanes(Vector<F, n> v) {
    if constexpr (n >> step == 1) {
        return v[0];
    } else {
        return sum_of_lanes<F, n, step + 1>(v + folded<step, F, n>(v));
    }
}
template <class F, int n, int step = 0>
INLINE F highest_lane(Vector<F, n> v) {
    if constexpr (n >> step == 1) {
        return v[0];
    } else {
        const Vector<F, n> other = folded<step, F, n>(v);
        return highest_lane<F, n, step + 1>(other > v ? other : v);
    }
}

// The lanes of the results are the sums over the lanes of rows[0], rows[1], ...: as many rows as lanes.
template <class F, int n>
struct SumRows;

template <class F>
struct SumRows<F, 1> {
    static INLINE Vector<F, 1> of(const Vector<F, 1> *rows) { return rows[0]; }
};

template <>
struct SumRows<float, 4> {
    using V = Vector<float, 4>;
    static INLINE V pairs(V a, V b) {
        return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
    }
    static INLINE V of(const V *r) { return pairs(pairs(r[0], r[1]), pairs(r[2], r[3])); }
};

template <>
struct SumRows<float, 8> {
    using V = Vector<float, 8>;
    static INLINE V pairs(V a, V b) {  // within each half of the vectors
        return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
               __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
    }
    static INLINE V of(const V *r) {
        const V a = pairs(pairs(r[0], r[1]), pairs(r[2], r[3])), b = pairs(pairs(r[4], r[5]), pairs(r[6], r[7]));
        return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
               __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
};

template <>
struct SumRows<float, 16> {
    using V = Vector<float, 16>;
    static INLINE V pairs(V a, V b) {  // within each quarter of the vectors
        return __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
               __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
    }
    static INLINE V quarters(V a, V b) {
        return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
               __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
    static INLINE V four(const V *r) { return pairs(pairs(r[0], r[1]), pairs(r[2], r[3])); }
    static INLINE V of(const V *r) {
        return quarters(quarters(four(r), four(r + 4)), quarters(four(r + 8), four(r + 12)));
    }
};

template <>
struct SumRows<double, 2> {
    using V = Vector<double, 2>;
    static INLINE V of(const V *r) {
        return __builtin_shufflevector(r[0], r[1], 0, 2) + __builtin_shufflevector(r[0], r[1], 1, 3);
    }
};

template <>
struct SumRows<double, 4> {
    using V = Vector<double, 4>;
    static INLINE V pairs(V a, V b) {
        return __builtin_shufflevector(a, b, 0, 4, 2, 6) + __builtin_shufflevector(a, b, 1, 5, 3, 7);
    }
    static INLINE V of(const V *r) {
        const V a = pairs(r[0], r[1]), b = pairs(r[2], r[3]);
        return __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
    }
};

template <>
struct SumRows<double, 8> {
    using V = Vector<double, 8>;
    static INLINE V pairs(V a, V b) {
        return __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14) +
               __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
    static INLINE V quarters(V a, V b) {
        return __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13) +
               __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15);
    }
    static INLINE V of(const V *r) {
        return quarters(quarters(pairs(r[0], r[1]), pairs(r[2], r[3])),
                        quarters(pairs(r[4], r[5]), pairs(r[6], r[7])));
    }
};

// The even and the odd ones of 2n numbers: the x and the y of n points.
template <class F>
INLINE void deinterleave(const F *from, Vector<F, Wide<F>::lanes> &even, Vector<F, Wide<F>::lanes> &odd) {
    constexpr int n = Wide<F>::lanes;
    const auto a = load<Vector<F, n>>(from), b = load<Vector<F, n>>(from + n);
    if constexpr (n == 2) {
        even = __builtin_shufflevector(a, b, 0, 2), odd = __builtin_shufflevector(a, b, 1, 3);
    } else if constexpr (n == 4) {
        even = __builtin_shufflevector(a, b, 0, 2, 4, 6), odd = __builtin_shufflevector(a, b, 1, 3, 5, 7);
    } else if constexpr (n == 8) {
        even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
        odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
    } else {
        even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    }
}

template <class F>
INLINE void interleave(Vector<F, Wide<F>::lanes> even, Vector<F, Wide<F>::lanes> odd, F *to) {
    constexpr int n = Wide<F>::lanes;
    Vector<F, n> a, b;
    if constexpr (n == 2) {
        a = __builtin_shufflevector(even, odd, 0, 2), b = __builtin_shufflevector(even, odd, 1, 3);
    } else if constexpr (n == 4) {
        a = __builtin_shufflevector(even, odd, 0, 4, 1, 5), b = __builtin_shufflevector(even, odd, 2, 6, 3, 7);
    } else if constexpr (n == 8) {
        a = __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
        b = __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
    } else {
        a = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        b = __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    store(to, a);
    store(to + n, b);
}

// e^x for x <= 0 or NaN. For float a polynomial, about 1 ulp; what is below the smallest normal number is 0.
template <int n>
INLINE Vector<float, n> exponential(Vector<float, n> x) {
    using V = Vector<float, n>;
    using I = Vector<int32_t, n>;
    const auto tiny = x < -87.4f;  // below the smallest normal number, 2^-126
    x = tiny ? V{} : x;
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const V shifted = x * 1.44269504088896341f + magic;
    const V whole = shifted - magic;
    V r = multiply_add<V>(whole, broadcast<V>(-0.693145751953125f), x);  // ln 2 in two parts, the first one short
    r = multiply_add<V>(whole, broadcast<V>(-1.4286068e-6f), r);
    V p = broadcast<V>(0x1.6a2434p-10f);  // (e^r - 1 - r) / r^2, fitted to 3e-9 of e^r
    p = multiply_add<V>(p, r, broadcast<V>(0x1.1239e2p-7f));
    p = multiply_add<V>(p, r, broadcast<V>(0x1.5558f2p-5f));
    p = multiply_add<V>(p, r, broadcast<V>(0x1.555492p-3f));
    p = multiply_add<V>(p, r, broadcast<V>(0x1.fffffcp-2f));
    p = multiply_add<V>(p, r * r, r + 1.0f);
    const I power = ((I)shifted - 0x4B400000 + 127) << 23;
    return tiny ? V{} : p * (V)power;
}
template <int n>
INLINE Vector<double, n> exponential(Vector<double, n> x) {
    Vector<double, n> result{};
    for (int i = 0; i < n; ++i) result[i] = __builtin_exp(x[i]);
    return result;
}

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
