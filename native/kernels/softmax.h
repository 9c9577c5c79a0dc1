// Attention weights from logits.
#ifndef DEFORM_ATTN_SOFTMAX_H
#define DEFORM_ATTN_SOFTMAX_H

#include "lanes.h"
#include "plan.h"

namespace {

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

// Attention weights below it count as 0: whether there are smaller ones depends on the hardware and its modes.
template <class F>
constexpr F smallest_normal = F(sizeof(F) == 4 ? 0x1p-126 : 0x1p-1022);

// logits -> attention weights, in place. a is padded to whole vectors; the padding is left as -infinity's weight, 0.
template <class F>
INLINE void softmax(const Plan<F> &plan, F *a) {
    constexpr int n = Wide<F>::lanes;
    using V = Vector<F, n>;
    const int64_t T = plan.T, padded = plan.padded;
    const F infinity = F(__builtin_inf());
    for (int64_t t = T; t < padded; ++t) a[t] = -infinity;
    V highest = load<V>(a);
    for (int64_t t = n; t < padded; t += n) {
        const V next = load<V>(a + t);
        highest = next > highest ? next : highest;
    }
    const F high = highest_lane<F, n>(highest);
    V sums{};
    for (int64_t t = 0; t < padded; t += n) {
        // The padding's -infinity must not meet a `high` of -infinity.
        V e = exponential<n>(load<V>(a + t) - high);
        if (t + n > T) e = load<Vector<typename Wide<F>::Int, n>>(plan.present + t) ? e : V{};
        sums += e;
        store(a + t, e);
    }
    const F share = 1 / sum_of_lanes<F, n>(sums);
    for (int64_t t = 0; t < padded; t += n) {
        const V weight = load<V>(a + t) * share;
        store(a + t, weight < smallest_normal<F> ? V{} : weight);  // NaN stays
    }
}

}  // namespace

#endif
