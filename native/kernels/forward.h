// The forward pass: for each row, the shares of its pixels' channels, added up.
#ifndef DEFORM_ATTN_FORWARD_H
#define DEFORM_ATTN_FORWARD_H

#include "corners.h"
#include "halo_cells.h"
#include "locations.h"
#include "scalar_row.h"
#include "tasks.h"

namespace {

// out[0 .. blocks) = sum over the items of share * pixel. Several sums run side by side, since an addition must wait
// for the one before it.
template <class Block, int blocks, bool whole, class F, class Int>
INLINE bool weighted_sum(const typename Block::Value *base, int64_t stride, const Int *pixel, const F *share,
                         int64_t items, int64_t last, typename Block::Value *out) {
    using Vec = typename Block::Vec;
    constexpr int chains = blocks >= 8 ? 1 : blocks >= 4 ? 2 : 4;
    Vec sums[chains][blocks] = {};
    int64_t i = 0;
    for (; i + chains <= items; i += chains) {
        for (int c = 0; c < chains; ++c) {
            const typename Block::Value *from = at_pixel(base, pixel[i + c], stride);
            const Vec factor = broadcast<Vec>(share[i + c]);
            for (int b = 0; b < blocks; ++b) {
                const Vec read = Block::read(from + block_at<Block, blocks, whole>(b, last));
                sums[c][b] = multiply_add<Vec>(factor, read, sums[c][b]);
            }
        }
    }
    for (; i < items; ++i) {
        const typename Block::Value *from = at_pixel(base, pixel[i], stride);
        const Vec factor = broadcast<Vec>(share[i]);
        for (int b = 0; b < blocks; ++b) {
            const Vec read = Block::read(from + block_at<Block, blocks, whole>(b, last));
            sums[0][b] = multiply_add<Vec>(factor, read, sums[0][b]);
        }
    }
    Vec check{};
    for (int b = 0; b < blocks; ++b) {
        for (int c = 1; c < chains; ++c) sums[0][b] += sums[c][b];
        check += sums[0][b];
        Block::write(out + block_at<Block, blocks, whole>(b, last), sums[0][b]);
    }
    return !any_not_finite(check);
}

// sum[0 .. vectors) = sum over the T cells of share * pixel, from channel 0 of `map` on.
template <class F, bool nearest, int vectors>
INLINE void sum_cells(const F *map, int64_t pixel_bytes, const Cells<F> &cells, int64_t T,
                      Vector<F, Wide<F>::lanes> *sum) {
    using Vec = Vector<F, Wide<F>::lanes>;
    constexpr int n = Wide<F>::lanes;
    // Several sums run side by side, since an addition must wait for the one before it.
    constexpr int chains = vectors >= 8 ? 1 : vectors >= 4 ? 2 : 4;
    Vec sums[chains][vectors] = {};
    const char *const left = reinterpret_cast<const char *>(map), *const right = left + pixel_bytes;
    const auto add = [](const char *from, Vec share, Vec *to) INLINE_LAMBDA {
        for (int v = 0; v < vectors; ++v) {
            to[v] = multiply_add<Vec>(share, load<Vec>(reinterpret_cast<const F *>(from) + v * n), to[v]);
        }
    };
    if constexpr (nearest) {
        int64_t t = 0;
        for (; t + chains <= T; t += chains) {
            for (int c = 0; c < chains; ++c) {
                add(left + cells.top[t + c], broadcast<Vec>(cells.top_left[t + c]), sums[c]);
            }
        }
        for (; t < T; ++t) add(left + cells.top[t], broadcast<Vec>(cells.top_left[t]), sums[0]);
    }
    for (int64_t t = 0; t < T && !nearest; ++t) {
        const int64_t top = cells.top[t], bottom = cells.bottom[t];
        const Vec top_left = broadcast<Vec>(cells.top_left[t]), top_right = broadcast<Vec>(cells.top_right[t]);
        const Vec bottom_left = broadcast<Vec>(cells.bottom_left[t]);
        const Vec bottom_right = broadcast<Vec>(cells.bottom_right[t]);
        add(left + top, top_left, sums[0]);
        add(right + top, top_right, sums[1 % chains]);
        add(left + bottom, bottom_left, sums[2 % chains]);
        add(right + bottom, bottom_right, sums[3 % chains]);
    }
    for (int v = 0; v < vectors; ++v) {
        for (int c = 1; c < chains; ++c) sums[0][v] += sums[c][v];
        sum[v] = sums[0][v];
    }
}

template <class F>
struct ForwardWork {
    Plan<F> plan;
    RowTasks tasks;
};

// Rows that read value where it lies.
template <class Block>
void forward_body(int64_t, int64_t, void *context) {
    using V = typename Block::Value;
    using F = typename Block::Number;
    ForwardWork<F> &work = *static_cast<ForwardWork<F> *>(context);
    const Plan<F> &plan = work.plan;
    const deform_attn_call &call = *plan.call;
    Scratch<F> scratch;
    if (!scratch.prepare(plan, false)) return work.tasks.fail(DEFORM_ATTN_NO_MEMORY);
    const int64_t M = call.M, Q = call.Q, D = call.D, stride = call.value_stride_s * int64_t(sizeof(V));
    for (int64_t task; work.tasks.take(task);) {
        const Rows rows = work.tasks.rows(call, task);
        const int64_t n = rows.n;
        const V *image = static_cast<const V *>(call.value) + n * call.value_stride_n;
        for (int64_t q = rows.first_query; q < rows.end_query; ++q) {
            if (call.reference_points) place_references(plan, n, q, scratch);
            for (int64_t m = 0; m < M; ++m) {
                const V *base = image + m * call.value_stride_m;
                V *out = static_cast<V *>(call.output) + ((n * Q + q) * M + m) * D;
                locate(plan, n, q, m, scratch);
                const int64_t items = corners<F, false>(plan, n, scratch);
                bool finite = true;
                over_channels<Block>(D, [&](auto blocks, auto whole, int64_t at, int64_t last) INLINE_LAMBDA {
                    finite &= weighted_sum<Block, blocks.value, whole.value>(
                        base + at, stride, scratch.pixel, scratch.share, items, last, out + at);
                });
                if (!finite) {
                    scalar_row(plan, base, n, scratch);
                    for (int64_t d = 0; d < D; ++d) from_number(scratch.sum[d], out[d]);
                }
            }
        }
    }
}

// Rows that read one head's halo map.
template <class V, class F, bool nearest>
void forward_halo_body(int64_t, int64_t, void *context) {
    constexpr int lanes = Wide<F>::lanes;
    using Vec = Vector<F, lanes>;
    ForwardWork<F> &work = *static_cast<ForwardWork<F> *>(context);
    const Plan<F> &plan = work.plan;
    const deform_attn_call &call = *plan.call;
    Scratch<F> scratch;
    Cells<F> cells;
    HaloMap<V, F> map;
    if (!scratch.prepare(plan, false) || !cells.prepare(plan)) return work.tasks.fail(DEFORM_ATTN_NO_MEMORY);
    const int64_t M = call.M, Q = call.Q, D = call.D, C = whole_vectors<F>(D);
    for (int64_t task; work.tasks.take(task);) {
        const Rows rows = work.tasks.rows(call, task);
        const int64_t n = rows.n, m = rows.first_head;
        const F *pixels = map.of(plan, n, m);
        if (!pixels) return work.tasks.fail(DEFORM_ATTN_NO_MEMORY);
        for (int64_t q = rows.first_query; q < rows.end_query; ++q) {
            prefetch_row(call, n, q + 3, m);
            if (call.reference_points) place_references(plan, n, q, scratch);
            locate(plan, n, q, m, scratch);
            const bool numbers = find_cells<F, nearest, false>(plan, scratch, cells);
            V *out = static_cast<V *>(call.output) + ((n * Q + q) * M + m) * D;
            Vec check{};
            over_vectors<F>(C, [&](auto vectors, int64_t at) INLINE_LAMBDA {
                Vec sum[vectors.value];
                sum_cells<F, nearest, vectors.value>(pixels + at, plan.pixel_bytes, cells, plan.T, sum);
                for (int v = 0; v < vectors.value; ++v) check += sum[v];
                if (at + vectors.value * lanes <= D) {
                    for (int v = 0; v < vectors.value; ++v) Block<V, F, lanes>::write(out + at + v * lanes, sum[v]);
                } else {
                    F last[vectors.value * lanes];
                    for (int v = 0; v < vectors.value; ++v) store(last + v * lanes, sum[v]);
                    write_channels(last, D - at, out + at);
                }
            });
            if (!numbers || any_not_finite(check)) {
                scalar_row(plan, head_of<V>(call, n, m), n, scratch);
                write_channels(scratch.sum, D, out);
            }
        }
    }
}

template <class Block>
struct ForwardBody {
    static void run(int64_t begin, int64_t end, void *context) { forward_body<Block>(begin, end, context); }
};

template <class V, class F>
int32_t forward_of(const deform_attn_call *call) {
    if (call->N == 0 || call->Q == 0 || call->M == 0 || call->D == 0) return DEFORM_ATTN_OK;
    ForwardWork<F> work;
    if (!work.plan.prepare(call)) return DEFORM_ATTN_NO_MEMORY;
    if (work.plan.all_empty) {
        memset(call->output, 0, size_t(call->N * call->Q * call->M * call->D) * sizeof(V));
        return DEFORM_ATTN_OK;
    }
    // With nearest a point reads one pixel. Where its format needs no conversion, a copy then pays only if it is small.
    const int64_t D = call->D, pixel_bytes = D * int64_t(sizeof(F));
    const bool small = pixel_bytes <= 2 * int64_t(cache_line) && D == whole_vectors<F>(D);
    work.tasks.share_out(work.plan, !call->nearest || sizeof(V) < sizeof(F) || small);
    const auto halo_body = call->nearest ? &forward_halo_body<V, F, true> : &forward_halo_body<V, F, false>;
    if (work.tasks.halo) return work.tasks.run(*call, halo_body, &work);
    return work.tasks.run(*call, widest<V, F, ForwardBody>(call->D), &work);
}

}  // namespace

#endif
