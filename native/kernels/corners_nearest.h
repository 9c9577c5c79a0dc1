// The items of a row (corners.h) with nearest interpolation: one for each point.
#ifndef DEFORM_ATTN_CORNERS_NEAREST_H
#define DEFORM_ATTN_CORNERS_NEAREST_H

#include "scratch.h"

namespace {

template <class F, bool backward>
INLINE int64_t corners_nearest(const Plan<F> &plan, Scratch<F> &s) {
    constexpr int n = Wide<F>::lanes;
    using Int = typename Wide<F>::Int;
    using V = Vector<F, n>;
    using I = Vector<Int, n>;
    const V zero{}, one = broadcast<V>(F(1));
    for (int64_t t = 0; t < plan.T; t += n) {
        const V right = load<V>(plan.most_x + t), below = load<V>(plan.most_y + t);
        V x = load<V>(s.x + t) * load<V>(plan.width + t), y = load<V>(s.y + t) * load<V>(plan.height + t);
        V a = load<V>(s.a + t), on = one;
        I x_beyond{}, y_beyond{};
        if (plan.some_empty) {
            const I live = load<I>(plan.live + t);
            x = live ? x : zero;
            y = live ? y : zero;
            a = live ? a : zero;
            on = live ? on : zero;
        }
        if (plan.call->border) {
            const I is_number = (x == x) & (y == y);
            a = is_number ? a : broadcast<V>(F(__builtin_nan("")));
            x = x > F(0) ? x : zero;
            y = y > F(0) ? y : zero;
            x_beyond = x > right;
            y_beyond = y > below;
            x = x_beyond ? right : x;
            y = y_beyond ? below : y;
        } else {
            const I inside = (x >= F(0)) & (x < right) & (y >= F(0)) & (y < below);
            a = inside ? a : a * multiply_add<V>(x, zero, y * zero);
            on = inside ? on : zero;
            x = inside ? x : zero;
            y = inside ? y : zero;
        }
        const I column = x_beyond ? load<I>(plan.last_column + t) : __builtin_convertvector(x, I);
        const I row = y_beyond ? load<I>(plan.last_row + t) : __builtin_convertvector(y, I);
        store(s.pixel + t, row * load<I>(plan.row_length + t) + column + load<I>(plan.first + t));
        store(s.share + t, a);
        if constexpr (backward) {
            store(s.used_a + t, a);
            store(s.factors.left + t, on);
        }
    }
    return plan.T;
}

}  // namespace

#endif
