// Across the lanes of vectors: their sum, the highest one, sums of many rows at once, and (x, y) pairs in and out.
#ifndef DEFORM_ATTN_LANES_H
#define DEFORM_ATTN_LANES_H

#include "simd.h"

namespace {

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

}  // namespace

#endif
