// The forward pass: for each row, the shares of its pixels' channels, added up.
#ifndef DEFORM_ATTN_FORWARD_H
#define DEFORM_ATTN_FORWARD_H

#include "careful.h"
#include "cells.h"
#include "tasks.h"

namespace {

// Offsets of the blocks that cover D channels: block i starts at i * channels, but the last one ends at D.
template <class Block, int blocks, bool whole>
INLINE int64_t block_at(int i, int64_t last) {
    return whole || i + 1 < blocks ? int64_t(i) * Block::lanes : last;
}

// `stride` in bytes: one multiplication and one addition.
template <class V, class Int>
INLINE const V *at_pixel(const V *base, Int pixel, int64_t stride) {
    return reinterpret_cast<const V *>(reinterpret_cast<const char *>(base) + int64_t(pixel) * stride);
}

// out[0 .. blocks) = sum over the items of share * pixel. Several sums run side by side, since an addition must wait for
// the one before it.
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

// Call step(number of blocks, whether they are whole, first channel, offset of the last block) for runs of blocks that
// together cover D channels.
template <class Block, class Step>
INLINE void over_channels(int64_t D, Step step) {
    // Blocks narrower than a full vector are for a D that has room for few of them.
    constexpr int most = Block::lanes < Wide<typename Block::Number>::lanes ? 2 : 8;
    int64_t blocks = (D + Block::lanes - 1) / Block::lanes, at = 0;
    const bool whole = D % Block::lanes == 0;
    while (blocks > 0) {
        const int64_t last = D - Block::lanes - at;
        if (blocks >= most) {
            blocks == most && !whole ? step(Constant<most>(), Constant<false>(), at, last)
                                     : step(Constant<most>(), Constant<true>(), at, last);
            blocks -= most, at += most * Block::lanes;
        } else if (most > 4 && blocks >= 4) {
            blocks == 4 && !whole ? step(Constant<4>(), Constant<false>(), at, last)
                                  : step(Constant<4>(), Constant<true>(), at, last);
            blocks -= 4, at += 4 * Block::lanes;
        } else if (blocks >= 2) {
            blocks == 2 && !whole ? step(Constant<2>(), Constant<false>(), at, last)
                                  : step(Constant<2>(), Constant<true>(), at, last);
            blocks -= 2, at += 2 * Block::lanes;
        } else {
            step(Constant<1>(), Constant<false>(), at, last);
            blocks -= 1, at += Block::lanes;
        }
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
                    careful_row(plan, base, n, scratch);
                    for (int64_t d = 0; d < D; ++d) from_number(scratch.sum[d], out[d]);
                }
            }
        }
    }
}

// Rows that read one head's framed map.
template <class V, class F>
void framed_forward_body(int64_t, int64_t, void *context) {
    constexpr int lanes = Wide<F>::lanes;
    using Vec = Vector<F, lanes>;
    ForwardWork<F> &work = *static_cast<ForwardWork<F> *>(context);
    const Plan<F> &plan = work.plan;
    const deform_attn_call &call = *plan.call;
    Scratch<F> scratch;
    Cells<F> cells;
    FramedMap<V, F> map;
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
            const bool numbers = find_cells<F, false>(plan, scratch, cells);
            V *out = static_cast<V *>(call.output) + ((n * Q + q) * M + m) * D;
            Vec check{};
            over_vectors<F>(C, [&](auto vectors, int64_t at) INLINE_LAMBDA {
                Vec sum[vectors.value];
                sum_cells<F, vectors.value>(pixels + at, plan.pixel_bytes, cells, plan.T, sum);
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
                careful_row(plan, head_of<V>(call, n, m), n, scratch);
                write_channels(scratch.sum, D, out);
            }
        }
    }
}

// The widest block that D channels fill.
template <class V, class F, template <class> class Body>
auto widest(int64_t D) {
    constexpr int n = Wide<F>::lanes;
    if (D >= n) return &Body<Block<V, F, n>>::run;
    if constexpr (n > 8) {
        if (D >= 8) return &Body<Block<V, F, 8>>::run;
    }
    if constexpr (n > 4) {
        if (D >= 4) return &Body<Block<V, F, 4>>::run;
    }
    if constexpr (n > 2 && sizeof(F) == 8) {
        if (D >= 2) return &Body<Block<V, F, 2>>::run;
    }
    return &Body<Block<V, F, 1>>::run;
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
    work.tasks.share_out(work.plan, true);
    if (work.tasks.framed) return work.tasks.run(*call, &framed_forward_body<V, F>, &work);
    return work.tasks.run(*call, widest<V, F, ForwardBody>(call->D), &work);
}

}  // namespace

#endif
