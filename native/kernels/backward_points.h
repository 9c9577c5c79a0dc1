// Backward, first pass: the gradients of weights and points (and of logits, offsets and references).
//
// <grad_output, pixel> for each pixel that a row reads gives them all; queries are independent.
#ifndef DEFORM_ATTN_BACKWARD_POINTS_H
#define DEFORM_ATTN_BACKWARD_POINTS_H

#include "corners.h"
#include "locations.h"
#include "point_gradients.h"
#include "scalar_row.h"
#include "tasks.h"

namespace {

template <class F>
struct PointsWork {
    Plan<F> plan;
    RowTasks tasks;
};

// dot[i] (+)= <grad, pixel i> over some channels. `grad` has the layout of the blocks; items are padded to whole
// vectors.
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

// dot[k * padded + t] (+)= <grad, corner k of cell t> over some channels; the corners row by row.
template <class F, bool nearest, int vectors>
INLINE void cell_dots(const F *map, int64_t pixel_bytes, const Cells<F> &cells, const Plan<F> &plan, const F *grad,
                      F *dot, bool add) {
    constexpr int n = Wide<F>::lanes;
    using Vec = Vector<F, n>;
    using Int = typename Wide<F>::Int;
    Vec held[vectors];
    for (int v = 0; v < vectors; ++v) held[v] = load<Vec>(grad + v * n);
    const char *const left = reinterpret_cast<const char *>(map);
    for (int64_t t = 0; t < plan.T; t += n) {
        for (int k = 0; k < (nearest ? 1 : 4); ++k) {
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

// Rows that read value where it lies.
template <class Block>
void points_body(int64_t, int64_t, void *context) {
    using V = typename Block::Value;
    using F = typename Block::Number;
    PointsWork<F> &work = *static_cast<PointsWork<F> *>(context);
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
                if (!point_gradients_of_dots(plan, n, items, s)) {
                    for (int64_t d = 0; d < D; ++d) s.grad[d] = F(to_number(grad[d]));
                    scalar_point_gradients(plan, base, n, s);
                }
                const int64_t points_at = n * call.points_stride_n + q * call.points_stride_q + m * T * 2;
                write_point_gradients(plan, (n * Q + q) * M + m, points_at, s);
            }
            if (call.grad_reference_points) {
                write_numbers(call.grad_reference_points, call.reference_dtype, (n * Q + q) * references, references,
                              s.grad_reference);
            }
        }
    }
}

// Rows that read one head's halo map.
template <class V, class F, bool nearest>
void points_halo_body(int64_t, int64_t, void *context) {
    PointsWork<F> &work = *static_cast<PointsWork<F> *>(context);
    const Plan<F> &plan = work.plan;
    const deform_attn_call &call = *plan.call;
    Scratch<F> s;
    Cells<F> cells;
    HaloMap<V, F> map;
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
            const bool numbers = find_cells<F, nearest, true>(plan, s, cells);
            read_channels(grad, D, s.grad);
            over_vectors<F>(C, [&](auto vectors, int64_t at) INLINE_LAMBDA {
                cell_dots<F, nearest, vectors.value>(pixels + at, plan.pixel_bytes, cells, plan, s.grad + at, s.dot,
                                                     at > 0);
            });
            if (!point_gradients_of_cells<F, nearest>(plan, cells, s) || !numbers) {
                scalar_point_gradients(plan, head_of<V>(call, n, m), n, s);
            }
            const int64_t points_at = n * call.points_stride_n + q * call.points_stride_q + m * T * 2;
            write_point_gradients(plan, (n * Q + q) * M + m, points_at, s);
        }
    }
}

template <class Block>
struct PointsBody {
    static void run(int64_t begin, int64_t end, void *context) { points_body<Block>(begin, end, context); }
};

template <class V, class F>
int32_t backward_points_of(const deform_attn_call &call) {
    if (!call.grad_points && !call.grad_weights && !call.grad_reference_points) return DEFORM_ATTN_OK;
    PointsWork<F> work;
    if (!work.plan.prepare(&call)) return DEFORM_ATTN_NO_MEMORY;
    // The gradient of a reference is a sum over heads, so that one task must have all of them.
    work.tasks.share_out(work.plan, !call.grad_reference_points);
    const auto halo_body = call.nearest ? &points_halo_body<V, F, true> : &points_halo_body<V, F, false>;
    if (work.tasks.halo) return work.tasks.run(call, halo_body, &work);
    return work.tasks.run(call, widest<V, F, PointsBody>(call.D), &work);
}

}  // namespace

#endif
