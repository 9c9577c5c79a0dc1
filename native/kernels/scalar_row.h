// One row done with care, one number at a time, as reference.py does it: for rows whose fast sums are not finite.
#ifndef DEFORM_ATTN_SCALAR_ROW_H
#define DEFORM_ATTN_SCALAR_ROW_H

#include "addresses.h"
#include "scratch.h"

namespace {

// What one point reads. Corners that are off the map have pixel -1.
template <class F>
struct ScalarPoint {
    bool is_nan, empty;
    bool x_on, y_on;  // whether it moves with the coordinate: not where border has clamped it
    int corners;
    int64_t pixel[4];
    F weight[4];
    F along_x[4], along_y[4];  // derivatives of the weights by the coordinate in pixels
};

template <class F>
F floor_of_one(F x) {
    const F whole = F(int64_t(x));
    return whole > x ? whole - 1 : whole;
}

template <class F>
ScalarPoint<F> scalar_point(const Plan<F> &plan, int64_t t, F location_x, F location_y) {
    ScalarPoint<F> point{};
    point.empty = !plan.live[t];
    if (point.empty) return point;
    const F least = plan.least[t], most_x = plan.most_x[t], most_y = plan.most_y[t];
    const int64_t last_column = plan.last_column[t], last_row = plan.last_row[t];
    const int64_t W = plan.row_length[t], first = plan.first[t];
    const bool nearest = plan.call->nearest, border = plan.call->border;
    F x = location_x * plan.width[t], y = location_y * plan.height[t];
    if (!nearest) x -= F(0.5), y -= F(0.5);
    point.is_nan = x != x || y != y;
    point.x_on = point.y_on = true;
    if (point.is_nan) return point;
    const bool x_before = border && x < least, y_before = border && y < least;
    const bool x_beyond = border && x > most_x, y_beyond = border && y > most_y;
    if (border) {
        x = x_beyond ? most_x : x > least ? x : least, y = y_beyond ? most_y : y > least ? y : least;
    } else {
        // On the map's very edge only nearest has a pixel to read.
        const bool low = nearest ? x >= least && y >= least : x > least && y > least;
        if (!low || x >= most_x || y >= most_y) return point;
    }
    const F left = floor_of_one(x), top = floor_of_one(y);
    const int64_t first_column = x_beyond ? last_column : int64_t(left), first_row = y_beyond ? last_row : int64_t(top);
    if (border) {  // clamped on the last pixel's centre, too: beyond it the surface is level
        point.x_on = !x_before && first_column < last_column;
        point.y_on = !y_before && first_row < last_row;
    }
    if (nearest) {
        point.corners = 1;
        point.x_on = point.y_on = false;
        point.pixel[0] = first + first_row * W + first_column;
        point.weight[0] = 1;
        return point;
    }
    point.corners = 4;
    const F to_right = x - left, to_bottom = y - top;
    for (int k = 0; k < 4; ++k) {
        const bool right = k & 1, bottom = k & 2;
        int64_t column = first_column + right, row = first_row + bottom;
        if (border) column = smaller(column, last_column), row = smaller(row, last_row);
        const bool on_map = column >= 0 && column <= last_column && row >= 0 && row <= last_row;
        point.pixel[k] = on_map ? first + row * W + column : -1;
        const F across = right ? to_right : 1 - to_right, down = bottom ? to_bottom : 1 - to_bottom;
        point.weight[k] = across * down;
        point.along_x[k] = right ? down : -down;
        point.along_y[k] = bottom ? across : -across;
    }
    return point;
}

// A corner's number as it counts: masked pixels are 0, and so is what is not finite under a weight of exactly 0.
template <class V, class F>
F scalar_number(const deform_attn_call &call, const V *base, int64_t n, int64_t pixel, int64_t d, F weight) {
    if (call.mask && call.mask[n * call.mask_stride_n + pixel]) return 0;
    const F number = F(to_number(base[pixel * call.value_stride_s + d]));
    return weight == 0 && number - number != 0 ? 0 : number;
}

// `base` is pixel 0 of the row's image and head; the result goes to scratch.sum.
template <class V, class F>
NOT_INLINE void scalar_row(const Plan<F> &plan, const V *base, int64_t n, Scratch<F> &s) {
    const deform_attn_call &call = *plan.call;
    for (int64_t d = 0; d < call.D; ++d) s.sum[d] = 0;
    for (int64_t t = 0; t < plan.T; ++t) {
        const ScalarPoint<F> point = scalar_point(plan, t, s.x[t], s.y[t]);
        if (point.empty) continue;
        for (int64_t d = 0; d < call.D; ++d) {
            F read = point.is_nan ? F(__builtin_nan("")) : 0;
            for (int k = 0; k < point.corners; ++k) {
                if (point.pixel[k] < 0) continue;
                read += point.weight[k] * scalar_number(call, base, n, point.pixel[k], d, point.weight[k]);
            }
            s.sum[d] += s.a[t] * read;
        }
    }
}

// Gradients of the row's weights and of its coordinates in pixels, from scratch.grad, the row of grad_output.
template <class V, class F>
NOT_INLINE void scalar_point_gradients(const Plan<F> &plan, const V *base, int64_t n, Scratch<F> &s) {
    const deform_attn_call &call = *plan.call;
    for (int64_t t = 0; t < plan.T; ++t) {
        const ScalarPoint<F> point = scalar_point(plan, t, s.x[t], s.y[t]);
        F grad_a = 0, product[4] = {0, 0, 0, 0};
        for (int64_t d = 0; d < call.D && !point.empty; ++d) {
            F read = point.is_nan ? F(__builtin_nan("")) : 0;
            for (int k = 0; k < point.corners; ++k) {
                if (point.pixel[k] < 0) continue;
                const F number = scalar_number(call, base, n, point.pixel[k], d, point.weight[k]);
                read += point.weight[k] * number;
                product[k] += s.a[t] * s.grad[d] * number;
            }
            grad_a += s.grad[d] * read;
        }
        s.grad_a[t] = grad_a;
        s.grad_x[t] = s.grad_y[t] = 0;
        for (int k = 0; k < point.corners; ++k) {
            if (point.pixel[k] < 0) continue;
            if (point.x_on) s.grad_x[t] += point.along_x[k] * product[k];
            if (point.y_on) s.grad_y[t] += point.along_y[k] * product[k];
        }
    }
}

// Add the row's part of grad_value, from scratch.grad. `place(t, row, column)` is where the sum of that pixel of point
// t's level runs, or null where it is none of this thread's.
template <class V, class F, class Place>
NOT_INLINE void scalar_value_gradients(const Plan<F> &plan, const V *base, int64_t n, Scratch<F> &s, Place place) {
    const deform_attn_call &call = *plan.call;
    for (int64_t t = 0; t < plan.T; ++t) {
        const ScalarPoint<F> point = scalar_point(plan, t, s.x[t], s.y[t]);
        for (int k = 0; k < point.corners; ++k) {
            const int64_t pixel = point.pixel[k];
            if (pixel < 0 || (call.mask && call.mask[n * call.mask_stride_n + pixel])) continue;
            const int64_t in_level = pixel - plan.first[t], W = plan.row_length[t];
            F *to = place(t, in_level / W, in_level % W);
            if (!to) continue;
            for (int64_t d = 0; d < call.D; ++d) {
                const F number = F(to_number(base[pixel * call.value_stride_s + d]));
                if (point.weight[k] == 0 && number - number != 0) continue;
                to[d] += point.weight[k] * (s.a[t] * s.grad[d]);
            }
        }
    }
}

}  // namespace

#endif
