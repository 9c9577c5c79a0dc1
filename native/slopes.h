// Backward, first pass: the gradients of weights and points (and of logits, offsets and references).
//
// <grad_output, pixel> for each pixel that a row reads gives them all; queries are independent.
#ifndef DEFORM_ATTN_SLOPES_H
#define DEFORM_ATTN_SLOPES_H

#include "forward.h"

namespace {

template <class F>
struct SlopesWork {
    Plan<F> plan;
    RowTasks tasks;
};

// dot[i] (+)= <grad, pixel i> over some channels. `grad` has the layout of the blocks; items are padded to whole vectors.
template <class Block, int blocks, bool whole, class F, class Int>
INLINE void dots(const typename Block::Value *base, int64_t stride, const Int *pixel, int64_t items, int64_t last,
                 const typename Block::Vec *grad, F *dot, bool add) {
    using Vec = typename Block::Vec;
    constexpr int n = Block::lanes;
    for (int64_t i = 0; i < items; i += n) {
        Vec rows[n];
        for (int r = 0; r < n; ++r) {
            const typename Block::Value *from = at_pixel(base, pixel[i + r], stride);
            Vec sum{};
            for (int b = 0; b < blocks; ++b) {
                const Vec read = Block::read(from + block_at<Block, blocks, whole>(b, last));
                sum = b ? multiply_add<Vec>(read, grad[b], sum) : read * grad[0];
            }
            rows[r] = sum;
        }
        Vec sums = SumRows<F, n>::of(rows);
        if (add) sums += load<Vec>(dot + i);
        store(dot + i, sums);
    }
}

// <grad_output, pixel> for all items of a row.
template <class Block, class F>
INLINE void row_dots(const deform_attn_call &call, const typename Block::Value *base, int64_t stride,
                     const typename Block::Value *grad, int64_t items, Scratch<F> &s) {
    using V = typename Block::Value;
    over_channels<Block>(call.D, [&](auto blocks, auto whole, int64_t at, int64_t last) INLINE_LAMBDA {
        constexpr int count = blocks.value;
        typename Block::Vec held[count] = {};
        for (int b = 0; b < count; ++b) {
            const int64_t from = at + block_at<Block, count, whole.value>(b, last);
            if (!whole.value && b + 1 == count) {
                // The last block overlaps the one before: channels that were counted there are 0 here.
                V *rest = reinterpret_cast<V *>(s.row);
                const int64_t counted = at + int64_t(b) * Block::lanes - from;
                memset(rest, 0, Block::lanes * sizeof(V));
                for (int64_t d = counted; d < Block::lanes; ++d) rest[d] = grad[from + d];
                held[b] = Block::read(rest);
            } else {
                held[b] = Block::read(grad + from);
            }
        }
        dots<Block, count, whole.value>(base + at, stride, s.pixel, items, last, held, s.dot, at > 0);
    });
}

// scratch.dot -> gradients of the row's weights and of its coordinates in pixels; returns whether all are finite.
template <class F>
NOT_INLINE bool slopes_of_dots(const Plan<F> &plan, int64_t n, int64_t items, Scratch<F> &s) {
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
INLINE void write_slopes(const Plan<F> &plan, int64_t row, int64_t points_at, Scratch<F> &s) {
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

// Rows that read value where it lies.
template <class Block>
void slopes_body(int64_t, int64_t, void *context) {
    using V = typename Block::Value;
    using F = typename Block::Number;
    SlopesWork<F> &work = *static_cast<SlopesWork<F> *>(context);
    const Plan<F> &plan = work.plan;
    const deform_attn_call &call = *plan.call;
    Scratch<F> s;
    if (!s.prepare(plan, true)) return work.tasks.fail(DEFORM_ATTN_NO_MEMORY);
    const int64_t M = call.M, Q = call.Q, D = call.D, T = call.T, stride = call.value_stride_s * int64_t(sizeof(V));
    const int64_t references = call.reference_points ? call.reference_levels * call.reference_size : 0;
    for (int64_t task; work.tasks.take(task);) {
        const Rows rows = work.tasks.rows(call, task);
        const int64_t n = rows.n;
        const V *image = static_cast<const V *>(call.value) + n * call.value_stride_n;
        for (int64_t q = rows.first_query; q < rows.end_query; ++q) {
            const V *grad_output = grad_output_of<V>(call, n, q);
            if (call.reference_points) place_references(plan, n, q, s);
            for (int64_t i = 0; i < references; ++i) s.grad_reference[i] = 0;
            for (int64_t m = 0; m < M; ++m) {
                const V *base = image + m * call.value_stride_m, *grad = grad_output + m * D;
                locate(plan, n, q, m, s);
                const int64_t items = corners<F, true>(plan, n, s);
                row_dots<Block>(call, base, stride, grad, items, s);
                if (!slopes_of_dots(plan, n, items, s)) {
                    for (int64_t d = 0; d < D; ++d) s.grad[d] = F(to_number(grad[d]));
                    careful_slopes(plan, base, n, s);
                }
                write_slopes(plan, (n * Q + q) * M + m, n * call.points_stride_n + q * call.points_stride_q + m * T * 2,
                             s);
            }
            if (call.grad_reference_points) {
                write_numbers(call.grad_reference_points, call.reference_dtype, (n * Q + q) * references, references,
                              s.grad_reference);
            }
        }
    }
}

// dot[k * padded + t] (+)= <grad, corner k of cell t> over some channels; the corners row by row.
template <class F, int vectors>
INLINE void cell_dots(const F *map, int64_t pixel_bytes, const Cells<F> &cells, const Plan<F> &plan, const F *grad,
                      F *dot, bool add) {
    constexpr int n = Wide<F>::lanes;
    using Vec = Vector<F, n>;
    using Int = typename Wide<F>::Int;
    Vec held[vectors];
    for (int v = 0; v < vectors; ++v) held[v] = load<Vec>(grad + v * n);
    const char *const left = reinterpret_cast<const char *>(map);
    for (int64_t t = 0; t < plan.T; t += n) {
        for (int k = 0; k < 4; ++k) {
            const char *side = k & 1 ? left + pixel_bytes : left;
            const Int *row = k & 2 ? cells.bottom : cells.top;
            Vec rows[n];
            for (int r = 0; r < n; ++r) {
                const F *from = reinterpret_cast<const F *>(side + int64_t(row[t + r]));
                rows[r] = load<Vec>(from) * held[0];
                for (int v = 1; v < vectors; ++v) {
                    rows[r] = multiply_add<Vec>(load<Vec>(from + v * n), held[v], rows[r]);
                }
            }
            Vec sums = SumRows<F, n>::of(rows);
            F *to = dot + k * plan.padded + t;
            if (add) sums += load<Vec>(to);
            store(to, sums);
        }
    }
}

// As slopes_of_dots, from the dots of a row's cells.
template <class F>
INLINE bool slopes_of_cells(const Plan<F> &plan, const Cells<F> &cells, Scratch<F> &s) {
    constexpr int n = Wide<F>::lanes;
    using Vec = Vector<F, n>;
    const Vec one = broadcast<Vec>(F(1));
    const F *dot = s.dot;
    const int64_t padded = plan.padded;
    Vec check{};
    for (int64_t t = 0; t < plan.T; t += n) {
        const Vec top_left = load<Vec>(dot + t), top_right = load<Vec>(dot + padded + t);
        const Vec bottom_left = load<Vec>(dot + 2 * padded + t), bottom_right = load<Vec>(dot + 3 * padded + t);
        const Vec right = load<Vec>(cells.right + t), below = load<Vec>(cells.below + t);
        const Vec left = one - right, above = one - below, a = load<Vec>(s.a + t);
        const Vec grad_a =
            above * (left * top_left + right * top_right) + below * (left * bottom_left + right * bottom_right);
        const Vec grad_x = a * load<Vec>(cells.x_on + t) *
                           (above * (top_right - top_left) + below * (bottom_right - bottom_left));
        const Vec grad_y = a * load<Vec>(cells.y_on + t) *
                           (left * (bottom_left - top_left) + right * (bottom_right - top_right));
        check += load<Vector<typename Wide<F>::Int, n>>(plan.present + t) ? grad_a + grad_x + grad_y : Vec{};
        store(s.grad_a + t, grad_a);
        store(s.grad_x + t, grad_x);
        store(s.grad_y + t, grad_y);
    }
    return !any_not_finite(check);
}

// Rows that read one head's framed map.
template <class V, class F>
void framed_slopes_body(int64_t, int64_t, void *context) {
    SlopesWork<F> &work = *static_cast<SlopesWork<F> *>(context);
    const Plan<F> &plan = work.plan;
    const deform_attn_call &call = *plan.call;
    Scratch<F> s;
    Cells<F> cells;
    FramedMap<V, F> map;
    if (!s.prepare(plan, true) || !cells.prepare(plan)) return work.tasks.fail(DEFORM_ATTN_NO_MEMORY);
    const int64_t M = call.M, Q = call.Q, D = call.D, T = call.T, C = whole_vectors<F>(D);
    for (int64_t task; work.tasks.take(task);) {
        const Rows rows = work.tasks.rows(call, task);
        const int64_t n = rows.n, m = rows.first_head;
        const F *pixels = map.of(plan, n, m);
        if (!pixels) return work.tasks.fail(DEFORM_ATTN_NO_MEMORY);
        for (int64_t q = rows.first_query; q < rows.end_query; ++q) {
            const V *grad = grad_output_of<V>(call, n, q) + m * D;
            prefetch_row(call, n, q + 3, m);
            prefetch(grad, sizeof(V), 3 * call.grad_output_stride_q, D);
            if (call.reference_points) place_references(plan, n, q, s);
            locate(plan, n, q, m, s);
            const bool numbers = find_cells<F, true>(plan, s, cells);
            read_channels(grad, D, s.grad);
            over_vectors<F>(C, [&](auto vectors, int64_t at) INLINE_LAMBDA {
                cell_dots<F, vectors.value>(pixels + at, plan.pixel_bytes, cells, plan, s.grad + at, s.dot, at > 0);
            });
            if (!slopes_of_cells(plan, cells, s) || !numbers) {
                careful_slopes(plan, head_of<V>(call, n, m), n, s);
            }
            write_slopes(plan, (n * Q + q) * M + m, n * call.points_stride_n + q * call.points_stride_q + m * T * 2, s);
        }
    }
}

template <class Block>
struct SlopesBody {
    static void run(int64_t begin, int64_t end, void *context) { slopes_body<Block>(begin, end, context); }
};

template <class V, class F>
int32_t slopes_of(const deform_attn_call &call) {
    if (!call.grad_points && !call.grad_weights && !call.grad_reference_points) return DEFORM_ATTN_OK;
    SlopesWork<F> work;
    if (!work.plan.prepare(&call)) return DEFORM_ATTN_NO_MEMORY;
    // The gradient of a reference is a sum over heads, so that one task must have all of them.
    work.tasks.share_out(work.plan, !call.grad_reference_points);
    if (work.tasks.framed) return work.tasks.run(call, &framed_slopes_body<V, F>, &work);
    return work.tasks.run(call, widest<V, F, SlopesBody>(call.D), &work);
}

}  // namespace

#endif
