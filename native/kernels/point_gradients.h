// The gradients of a row's weights, locations, offsets, logits and references, from <grad_output, pixel> of its pixels.
#ifndef DEFORM_ATTN_POINT_GRADIENTS_H
#define DEFORM_ATTN_POINT_GRADIENTS_H

#include "formats.h"
#include "halo_cells.h"
#include "lanes.h"
#include "scratch.h"

namespace {

// scratch.dot -> gradients of the row's weights and of its coordinates in pixels; returns whether all are finite.
template <class F>
NOT_INLINE bool point_gradients_of_dots(const Plan<F> &plan, int64_t n, int64_t items, Scratch<F> &s) {
    constexpr int lanes = Wide<F>::lanes;
    using Vec = Vector<F, lanes>;
    const deform_attn_call &call = *plan.call;
    if (call.mask) {
        const uint8_t *mask = call.mask + n * call.mask_stride_n;
        for (int64_t i = 0; i < items; ++i) s.dot[i] *= F(!mask[s.pixel[i]]);
    }
    const Factors<F> &f = s.factors;
    Vec check{};
    for (int64_t t = 0; t < plan.T; t += lanes) {
        const Vec a = load<Vec>(s.used_a + t);
        Vec grad_a, grad_x{}, grad_y{};
        if (call.nearest) {
            grad_a = load<Vec>(f.left + t) * load<Vec>(s.dot + t);
            grad_x = grad_y = a * Vec{};
        } else {
            const int64_t step = plan.T - t < lanes ? plan.T - t : lanes;
            const F *dot = s.dot + 4 * t;
            const Vec top_left = load<Vec>(dot), top_right = load<Vec>(dot + step);
            const Vec bottom_left = load<Vec>(dot + 2 * step), bottom_right = load<Vec>(dot + 3 * step);
            const Vec left = load<Vec>(f.left + t), right = load<Vec>(f.right + t);
            const Vec top = load<Vec>(f.top + t), bottom = load<Vec>(f.bottom + t);
            const Vec at_left = load<Vec>(f.at_left + t), at_right = load<Vec>(f.at_right + t);
            const Vec at_top = load<Vec>(f.at_top + t), at_bottom = load<Vec>(f.at_bottom + t);
            grad_a = top * (left * top_left + right * top_right) + bottom * (left * bottom_left + right * bottom_right);
            grad_x = a * (top * (at_right * top_right - at_left * top_left) +
                          bottom * (at_right * bottom_right - at_left * bottom_left));
            grad_y = a * (left * (at_bottom * bottom_left - at_top * top_left) +
                          right * (at_bottom * bottom_right - at_top * top_right));
        }
        const Vec bad = (grad_a - grad_a) + (grad_x - grad_x) + (grad_y - grad_y);
        check += load<Vector<typename Wide<F>::Int, lanes>>(plan.present + t) ? bad : Vec{};
        store(s.grad_a + t, grad_a);
        store(s.grad_x + t, grad_x);
        store(s.grad_y + t, grad_y);
    }
    return !any_not_finite(check);
}

// As point_gradients_of_dots, from the dots of a row's cells.
template <class F, bool nearest>
INLINE bool point_gradients_of_cells(const Plan<F> &plan, const Cells<F> &cells, Scratch<F> &s) {
    constexpr int n = Wide<F>::lanes;
    using Vec = Vector<F, n>;
    const Vec one = broadcast<Vec>(F(1));
    const F *dot = s.dot;
    const int64_t padded = plan.padded;
    Vec check{};
    for (int64_t t = 0; t < plan.T; t += n) {
        const Vec a = load<Vec>(s.a + t), top_left = load<Vec>(dot + t);
        Vec grad_a = top_left, grad_x = a * Vec{}, grad_y = grad_x;
        if constexpr (!nearest) {
            const Vec top_right = load<Vec>(dot + padded + t);
            const Vec bottom_left = load<Vec>(dot + 2 * padded + t), bottom_right = load<Vec>(dot + 3 * padded + t);
            const Vec right = load<Vec>(cells.right + t), below = load<Vec>(cells.below + t);
            const Vec left = one - right, above = one - below;
            grad_a =
                above * (left * top_left + right * top_right) + below * (left * bottom_left + right * bottom_right);
            grad_x = a * load<Vec>(cells.x_on + t) *
                     (above * (top_right - top_left) + below * (bottom_right - bottom_left));
            grad_y = a * load<Vec>(cells.y_on + t) *
                     (left * (bottom_left - top_left) + right * (bottom_right - top_right));
        }
        check += load<Vector<typename Wide<F>::Int, n>>(plan.present + t) ? grad_a + grad_x + grad_y : Vec{};
        store(s.grad_a + t, grad_a);
        store(s.grad_x + t, grad_x);
        store(s.grad_y + t, grad_y);
    }
    return !any_not_finite(check);
}

// Add the row's part of the gradient of its references to scratch.grad_reference.
template <class F>
NOT_INLINE void add_to_references(const Plan<F> &plan, int64_t points_at, Scratch<F> &s) {
    const deform_attn_call &call = *plan.call;
    const int64_t size = call.reference_size, step = call.reference_levels > 1 ? size : 0;
    const F scale = F(call.offset_scale);
    const F *offsets = size == 4 ? Array{call.points, call.points_dtype}.view(points_at, 2 * plan.T, s.raw) : nullptr;
    for (int64_t t = 0; t < plan.T; ++t) {
        if (!plan.live[t]) continue;  // whatever its offset is
        F *grad = s.grad_reference + plan.level[t] * step;
        const F x = s.grad_x[t] * plan.width[t], y = s.grad_y[t] * plan.height[t];
        grad[0] += x;
        grad[1] += y;
        if (size == 2) continue;
        // 0 stays 0: an offset that is not finite has put the point at a location that is not finite either.
        if (x != 0) grad[2] += x * offsets[2 * t] * (scale / plan.count[t]);
        if (y != 0) grad[3] += y * offsets[2 * t + 1] * (scale / plan.count[t]);
    }
}

// Gradients of a row in pixels -> gradients of the arguments.
template <class F>
INLINE void write_point_gradients(const Plan<F> &plan, int64_t row, int64_t points_at, Scratch<F> &s) {
    constexpr int n = Wide<F>::lanes;
    using Vec = Vector<F, n>;
    using Ints = Vector<typename Wide<F>::Int, n>;
    const deform_attn_call &call = *plan.call;
    const int64_t T = plan.T;
    if (call.reference_points) {
        // Through the softmax: weight * (gradient - their mean by weight).
        Vec sums{};
        for (int64_t t = 0; t < T; t += n) {
            const Vec product = load<Vec>(s.a + t) * load<Vec>(s.grad_a + t);
            sums += load<Ints>(plan.present + t) ? product : Vec{};
        }
        const F mean = sum_of_lanes<F, n>(sums);
        for (int64_t t = 0; t < T; t += n) {
            store(s.grad_a + t, load<Vec>(s.a + t) * (load<Vec>(s.grad_a + t) - mean));
        }
    }
    if (call.grad_weights) write_numbers(call.grad_weights, call.weights_dtype, row * T, T, s.grad_a);
    if (call.grad_reference_points) add_to_references(plan, points_at, s);
    if (!call.grad_points) return;
    const F scale = F(call.offset_scale);
    for (int64_t t = 0; t < T; t += n) {
        Vec x = load<Vec>(s.grad_x + t), y = load<Vec>(s.grad_y + t);
        // Beside 2-d references the size of the map comes and goes.
        if (!call.reference_points || call.reference_size == 4) {
            x *= load<Vec>(plan.width + t);
            y *= load<Vec>(plan.height + t);
        }
        if (call.reference_points && call.reference_size == 4) {
            const Ints live = load<Ints>(plan.live + t);  // elsewhere 0, whatever the reference is
            const Vec share = scale / load<Vec>(plan.count + t);
            // 0 stays 0: a size that is not finite has put the point at a location that is not finite either.
            x = (live & (x != Vec{})) ? x * load<Vec>(s.rw + t) * share : Vec{};
            y = (live & (y != Vec{})) ? y * load<Vec>(s.rh + t) * share : Vec{};
        }
        interleave<F>(x, y, s.raw + 2 * t);
    }
    write_numbers(call.grad_points, call.points_dtype, row * 2 * T, 2 * T, s.raw);
}

}  // namespace

#endif
