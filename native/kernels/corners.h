// From the points of a row to the pixels that it reads and how much each one counts: a list of (pixel, share) items.
//
// It is optimistic: it does not look for NaN or infinity, but makes sure that they come out at the end of the sums,
// where a row that is not finite is done again (scalar_row.h).
#ifndef DEFORM_ATTN_CORNERS_H
#define DEFORM_ATTN_CORNERS_H

#include "corners_nearest.h"
#include "scratch.h"

namespace {

// The items of one axis: low and high pixel of the points on it, and their shares.
template <class V, class I>
struct Axis {
    I low, high;
    V low_share, high_share, low_on, high_on;
};

// `position` in pixels (0 at the first pixel's centre), within the bounds of the plan; `last` is the last pixel. With
// border, `beyond` says which points lay beyond that pixel.
template <class F, bool border, class V, class I>
INLINE Axis<V, I> axis_of(V position, I last, I beyond) {
    constexpr int n = Wide<F>::lanes;
    const V one = broadcast<V>(F(1)), zero{};
    Axis<V, I> axis;
    const V low = floor_of<F, n>(position, axis.low);
    if constexpr (border) axis.low = beyond ? last : axis.low;
    axis.high = axis.low + 1;
    const V to_high = position - low;
    const I low_off = axis.low < 0, high_off = axis.high > last;
    axis.low_on = one;
    axis.high_on = one;
    if constexpr (!border) {
        axis.low_on = low_off ? zero : one;
        axis.high_on = high_off ? zero : one;
    }
    axis.low_share = (one - to_high) * axis.low_on;
    axis.high_share = to_high * axis.high_on;
    axis.low = low_off ? I{} : axis.low;
    axis.high = high_off ? last : axis.high;
    return axis;
}

// Turn scratch.x, .y and .a into items; return how many. For each whole vector of points, and for the rest, all first
// corners come before all second ones, and so on. `factors` are filled for the backward pass only.
template <class F, bool backward>
INLINE int64_t corners_bilinear(const Plan<F> &plan, Scratch<F> &s) {
    constexpr int n = Wide<F>::lanes;
    using Int = typename Wide<F>::Int;
    using V = Vector<F, n>;
    using I = Vector<Int, n>;
    const bool border = plan.call->border;
    const V zero{};
    for (int64_t t = 0; t < plan.T; t += n) {
        const V right = load<V>(plan.most_x + t), below = load<V>(plan.most_y + t);
        const I last_column = load<I>(plan.last_column + t), last_row = load<I>(plan.last_row + t);
        V x = load<V>(s.x + t) * load<V>(plan.width + t) - F(0.5);
        V y = load<V>(s.y + t) * load<V>(plan.height + t) - F(0.5);
        V a = load<V>(s.a + t);
        V on = broadcast<V>(F(1)), x_on, y_on;
        Axis<V, I> columns, rows;
        if (plan.some_empty) {
            const I live = load<I>(plan.live + t);
            x = live ? x : zero;
            y = live ? y : zero;
            a = live ? a : zero;
            on = live ? on : zero;
        }
        if (border) {
            const I x_beyond = x > right, y_beyond = y > below;
            const I x_from_0 = x >= F(0), y_from_0 = y >= F(0);  // not NaN
            const I is_number = (x == x) & (y == y);
            a = is_number ? a : broadcast<V>(F(__builtin_nan("")));
            x = x > F(0) ? x : zero;  // NaN, too
            y = y > F(0) ? y : zero;
            x = x_beyond ? right : x;
            y = y_beyond ? below : y;
            columns = axis_of<F, true, V, I>(x, last_column, x_beyond);
            rows = axis_of<F, true, V, I>(y, last_row, y_beyond);
            if constexpr (backward) {
                // Clamped on the last pixel's centre, too: beyond it the surface is level.
                x_on = (x_from_0 & (columns.low < last_column)) ? on : zero;
                y_on = (y_from_0 & (rows.low < last_row)) ? on : zero;
            }
        } else {
            const I inside = (x > F(-1)) & (x < right) & (y > F(-1)) & (y < below);
            // 0, but NaN where a coordinate or the weight is NaN (or infinite, which scalar_row.h sorts out)
            a = inside ? a : a * multiply_add<V>(x, zero, y * zero);
            x = inside ? x : zero;
            y = inside ? y : zero;
            if constexpr (backward) on = x_on = y_on = inside ? on : zero;
            columns = axis_of<F, false, V, I>(x, last_column, I{});
            rows = axis_of<F, false, V, I>(y, last_row, I{});
        }
        const I row_length = load<I>(plan.row_length + t), first = load<I>(plan.first + t);
        const I top = rows.low * row_length + first, bottom = rows.high * row_length + first;
        const V a_top = a * rows.low_share, a_bottom = a * rows.high_share;
        const int64_t step = plan.T - t < n ? plan.T - t : n;
        Int *pixel = s.pixel + 4 * t;
        F *share = s.share + 4 * t;
        store(pixel, top + columns.low);
        store(share, a_top * columns.low_share);
        store(pixel + step, top + columns.high);
        store(share + step, a_top * columns.high_share);
        store(pixel + 2 * step, bottom + columns.low);
        store(share + 2 * step, a_bottom * columns.low_share);
        store(pixel + 3 * step, bottom + columns.high);
        store(share + 3 * step, a_bottom * columns.high_share);
        if constexpr (backward) {
            const Factors<F> &f = s.factors;
            store(s.used_a + t, a);
            store(f.left + t, columns.low_share * on);
            store(f.right + t, columns.high_share * on);
            store(f.top + t, rows.low_share * on);
            store(f.bottom + t, rows.high_share * on);
            store(f.at_left + t, columns.low_on * x_on);
            store(f.at_right + t, columns.high_on * x_on);
            store(f.at_top + t, rows.low_on * y_on);
            store(f.at_bottom + t, rows.high_on * y_on);
        }
    }
    return 4 * plan.T;
}

template <class F, bool backward>
NOT_INLINE int64_t corners(const Plan<F> &plan, int64_t n, Scratch<F> &s) {
    const int64_t items =
        plan.call->nearest ? corners_nearest<F, backward>(plan, s) : corners_bilinear<F, backward>(plan, s);
    if (plan.call->mask) {
        const uint8_t *mask = plan.call->mask + n * plan.call->mask_stride_n;
        for (int64_t i = 0; i < items; ++i) s.share[i] *= F(!mask[s.pixel[i]]);
    }
    return items;
}

}  // namespace

#endif
