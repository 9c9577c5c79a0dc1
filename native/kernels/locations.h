// Where the points of a row lie, as fractions of the map, and how much each of them weighs.
#ifndef DEFORM_ATTN_LOCATIONS_H
#define DEFORM_ATTN_LOCATIONS_H

#include "formats.h"
#include "lanes.h"
#include "scratch.h"
#include "softmax.h"

namespace {

// Spread the references of query (n, q) over its points.
template <class F>
NOT_INLINE void place_references(const Plan<F> &plan, int64_t n, int64_t q, Scratch<F> &s) {
    constexpr int lanes = Wide<F>::lanes;
    using V = Vector<F, lanes>;
    const deform_attn_call &call = *plan.call;
    const Array references{call.reference_points, call.reference_dtype};
    const int64_t offset = n * call.reference_stride_n + q * call.reference_stride_q;
    const bool boxes = call.reference_size == 4;
    int64_t first = 0;
    for (int64_t l = 0; l < call.L; ++l) {
        F copy[4];
        const F *reference = references.view(offset + l * call.reference_stride_l, call.reference_size, copy);
        const int64_t end = first + call.levels[4 * l + 3];
        // Whole vectors: what they write past a level's end is overwritten by the next level, or lies in the padding.
        for (int64_t t = first; t < end; t += lanes) {
            store(s.rx + t, broadcast<V>(reference[0]));
            store(s.ry + t, broadcast<V>(reference[1]));
            if (boxes) {
                store(s.rw + t, broadcast<V>(reference[2]));
                store(s.rh + t, broadcast<V>(reference[3]));
            }
        }
        first = end;
    }
}

// Fill scratch.x, .y and .a for the row of query (n, q) and head m.
template <class F>
INLINE void locate(const Plan<F> &plan, int64_t n, int64_t q, int64_t m, Scratch<F> &s) {
    constexpr int lanes = Wide<F>::lanes;
    using V = Vector<F, lanes>;
    const deform_attn_call &call = *plan.call;
    const int64_t T = plan.T, whole = T / lanes * lanes;

    const int64_t at = n * call.points_stride_n + q * call.points_stride_q + m * T * 2;
    const F *points = Array{call.points, call.points_dtype}.view(at, 2 * T, s.raw);
    for (int64_t t = 0; t < whole; t += lanes) {
        V x, y;
        deinterleave<F>(points + 2 * t, x, y);
        store(s.x + t, x);
        store(s.y + t, y);
    }
    for (int64_t t = whole; t < T; ++t) s.x[t] = points[2 * t], s.y[t] = points[2 * t + 1];

    const int64_t weights_at = n * call.weights_stride_n + q * call.weights_stride_q + m * T;
    const F *weights = Array{call.weights, call.weights_dtype}.view(weights_at, T, s.a);
    if (weights != s.a) {
        for (int64_t t = 0; t < whole; t += lanes) store(s.a + t, load<V>(weights + t));
        for (int64_t t = whole; t < T; ++t) s.a[t] = weights[t];
    }
    if (!call.reference_points || T == 0) return;

    softmax(plan, s.a);
    // The roundings are those of reference.py, so that both agree on which weights are exactly 0.
    if (call.reference_size == 2) {
        for (int64_t t = 0; t < plan.padded; t += lanes) {
            store(s.x + t, load<V>(s.rx + t) + load<V>(s.x + t) / load<V>(plan.width + t));
            store(s.y + t, load<V>(s.ry + t) + load<V>(s.y + t) / load<V>(plan.height + t));
        }
    } else {
        const F scale = F(call.offset_scale);
        for (int64_t t = 0; t < plan.padded; t += lanes) {
            const V count = load<V>(plan.count + t);
            store(s.x + t, load<V>(s.rx + t) + load<V>(s.x + t) / count * load<V>(s.rw + t) * scale);
            store(s.y + t, load<V>(s.ry + t) + load<V>(s.y + t) / count * load<V>(s.rh + t) * scale);
        }
    }
}

}  // namespace

#endif
