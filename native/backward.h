// The backward pass, in two passes over the rows, each only where one of its gradients is wanted.
//
// Slopes: <grad_output, pixel> for each item gives the gradients of weights and points (and of logits, offsets and
// references); queries are independent. Scatter: share * grad_output is added to each item's pixel of grad_value; a
// thread owns some heads, or, where there are more threads than heads, some pixels of a head. A pixel's sum always runs
// in the order of the queries, so that the result is the same to the last bit for any number of threads.
#ifndef DEFORM_ATTN_BACKWARD_H
#define DEFORM_ATTN_BACKWARD_H

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
                Vec read[Block::parts];
                Block::read(from + block_at<Block, blocks, whole>(b, last), read);
                for (int p = 0; p < Block::parts; ++p) {
                    sum = b + p ? multiply_add<Vec>(read[p], grad[b * Block::parts + p], sum) : read[p] * grad[0];
                }
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
        typename Block::Vec held[count * Block::parts] = {};
        for (int b = 0; b < count; ++b) {
            const int64_t from = at + block_at<Block, count, whole.value>(b, last);
            if (!whole.value && b + 1 == count) {
                // The last block overlaps the one before: channels that were counted there are 0 here.
                V *rest = reinterpret_cast<V *>(s.row);
                const int64_t counted = at + int64_t(b) * Block::channels - from;
                memset(rest, 0, Block::channels * sizeof(V));
                for (int64_t d = counted; d < Block::channels; ++d) rest[d] = grad[from + d];
                Block::read(rest, held + b * Block::parts);
            } else {
                Block::read(grad + from, held + b * Block::parts);
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

// Gradients of a row in pixels -> gradients of the arguments.
template <class F>
NOT_INLINE void write_slopes(const Plan<F> &plan, int64_t row, int64_t points_at, Scratch<F> &s) {
    const deform_attn_call &call = *plan.call;
    const int64_t T = plan.T;
    if (call.reference_points) {
        // Through the softmax: weight * (gradient - their mean by weight).
        F mean = 0;
        for (int64_t t = 0; t < T; ++t) mean += s.a[t] * s.grad_a[t];
        for (int64_t t = 0; t < T; ++t) s.grad_a[t] = s.a[t] * (s.grad_a[t] - mean);
    }
    if (call.grad_weights) write_numbers(call.grad_weights, call.weights_dtype, row * T, T, s.grad_a);
    if (!call.grad_points && !call.grad_reference_points) return;
    if (!call.reference_points) {
        for (int64_t t = 0; t < T; ++t) {
            s.raw[2 * t] = s.grad_x[t] * plan.width[t];
            s.raw[2 * t + 1] = s.grad_y[t] * plan.height[t];
        }
    } else if (call.reference_size == 2) {
        const int64_t step = call.reference_levels > 1 ? 2 : 0;
        for (int64_t t = 0; t < T; ++t) {
            F *grad = s.grad_reference + plan.level[t] * step;
            grad[0] += s.grad_x[t] * plan.width[t];
            grad[1] += s.grad_y[t] * plan.height[t];
            s.raw[2 * t] = s.grad_x[t];  // the size of the map comes and goes
            s.raw[2 * t + 1] = s.grad_y[t];
        }
    } else {
        const int64_t step = call.reference_levels > 1 ? 4 : 0;
        const F scale = F(call.offset_scale);
        const F *offsets = Array{call.points, call.points_dtype}.view(points_at, 2 * T, s.raw);
        for (int64_t t = 0; t < T; ++t) {
            if (!plan.live[t]) {  // whatever its offset is
                s.raw[2 * t] = s.raw[2 * t + 1] = 0;
                continue;
            }
            F *grad = s.grad_reference + plan.level[t] * step;
            const F x = s.grad_x[t] * plan.width[t], y = s.grad_y[t] * plan.height[t], share = scale / plan.count[t];
            grad[0] += x;
            grad[1] += y;
            grad[2] += x * offsets[2 * t] * share;
            grad[3] += y * offsets[2 * t + 1] * share;
            s.raw[2 * t] = x * s.rw[t] * share;
            s.raw[2 * t + 1] = y * s.rh[t] * share;
        }
    }
    if (call.grad_points) write_numbers(call.grad_points, call.points_dtype, row * 2 * T, 2 * T, s.raw);
}

template <class Block>
void slopes_body(int64_t, int64_t, void *context) {
    using V = typename Block::Value;
    using F = typename Block::Number;
    SlopesWork<F> &work = *static_cast<SlopesWork<F> *>(context);
    const Plan<F> &plan = work.plan;
    const deform_attn_call &call = *plan.call;
    Scratch<F> s;
    if (!s.prepare(plan, true)) return work.tasks.fail(DEFORM_ATTN_NO_MEMORY);
    PackedMap<V> map;
    const int64_t M = call.M, Q = call.Q, D = call.D, T = call.T;
    const int64_t references = call.reference_points ? call.reference_levels * call.reference_size : 0;
    for (int64_t task; work.tasks.take(task);) {
        const Rows rows = work.tasks.rows(call, task);
        const int64_t n = rows.n, stride = (work.tasks.packed ? D : call.value_stride_s) * int64_t(sizeof(V));
        const V *image = static_cast<const V *>(call.value) + n * call.value_stride_n, *packed = nullptr;
        if (work.tasks.packed) {
            packed = map.of(call, n, rows.first_head);
            if (!packed) return work.tasks.fail(DEFORM_ATTN_NO_MEMORY);
        }
        for (int64_t q = rows.first_query; q < rows.end_query; ++q) {
            const V *grad_output =
                static_cast<const V *>(call.grad_output) + n * call.grad_output_stride_n + q * call.grad_output_stride_q;
            if (packed) {
                prefetch_row(call, n, q + 3, rows.first_head);
                prefetch(grad_output, sizeof(V), 3 * call.grad_output_stride_q + rows.first_head * D, D);
            }
            if (call.reference_points) place_references(plan, n, q, s);
            for (int64_t i = 0; i < references; ++i) s.grad_reference[i] = 0;
            for (int64_t m = rows.first_head; m < rows.end_head; ++m) {
                const V *base = packed ? packed : image + m * call.value_stride_m, *grad = grad_output + m * D;
                locate(plan, n, q, m, s);
                const int64_t items = corners<F, true>(plan, n, s);
                row_dots<Block>(call, base, stride, grad, items, s);
                if (!slopes_of_dots(plan, n, items, s)) {
                    for (int64_t d = 0; d < D; ++d) s.grad[d] = F(to_number(grad[d]));
                    careful_slopes(plan, image + m * call.value_stride_m, n, s);
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

// grad_value[pixel i] += share i * grad, for all items whose pixel lies in [low, high).
template <class F, int fixed, class Int>
INLINE void scatter(F *base, int64_t stride, const Int *pixel, const F *share, int64_t items, int64_t D, const F *grad,
                    int64_t low, int64_t high, bool all) {
    constexpr int n = Wide<F>::lanes;
    using Vec = Vector<F, n>;
    for (int64_t i = 0; i < items; ++i) {
        const int64_t at = pixel[i];
        if (!all && (at < low || at >= high)) continue;
        F *to = base + at * stride;
        const Vec factor = broadcast<Vec>(share[i]);
        if constexpr (fixed > 0) {
            Vec sums[fixed];
            for (int v = 0; v < fixed; ++v) sums[v] = multiply_add<Vec>(factor, load<Vec>(grad + v * n), load<Vec>(to + v * n));
            for (int v = 0; v < fixed; ++v) store(to + v * n, sums[v]);
        } else {
            int64_t d = 0;
            for (; d + n <= D; d += n) store(to + d, multiply_add<Vec>(factor, load<Vec>(grad + d), load<Vec>(to + d)));
            if constexpr (n > 4) {
                using Four = Vector<F, 4>;
                for (; d + 4 <= D; d += 4) {
                    store(to + d, multiply_add<Four>(broadcast<Four>(share[i]), load<Four>(grad + d), load<Four>(to + d)));
                }
            }
            for (; d < D; ++d) to[d] += share[i] * grad[d];
        }
    }
}

template <class F>
INLINE bool all_finite(const F *numbers, int64_t count) {
    constexpr int n = Wide<F>::lanes;
    using Vec = Vector<F, n>;
    Vec check{};
    int64_t i = 0;
    for (; i + n <= count; i += n) {
        const Vec x = load<Vec>(numbers + i);
        check += x - x;
    }
    F rest = 0;
    for (; i < count; ++i) rest += numbers[i] - numbers[i];
    return !any_not_finite(check) && rest == 0;
}

// Tasks of the scatter pass: for each image some heads, or some pixels of one head.
template <class F>
struct ScatterWork {
    Plan<F> plan;
    Tasks tasks;
    bool direct;           // whether the sums run in grad_value itself, or in a map of one head that is copied there
    int64_t head_groups;   // groups of neighbouring heads
    int64_t pixel_parts;   // parts of the pixels
    int64_t *part_ends = nullptr;  // [pixel_parts] the pixels of part i lie before part_ends[i]
    int64_t most_pixels;           // of a part

    ~ScatterWork() { free(part_ends); }
};

template <class V, class F>
void scatter_body(int64_t, int64_t, void *context) {
    constexpr int lanes = Wide<F>::lanes;
    ScatterWork<F> &work = *static_cast<ScatterWork<F> *>(context);
    const Plan<F> &plan = work.plan;
    const deform_attn_call &call = *plan.call;
    Scratch<F> s;
    if (!s.prepare(plan, true)) return work.tasks.fail(DEFORM_ATTN_NO_MEMORY);
    const int64_t S = call.S, M = call.M, Q = call.Q, D = call.D;
    const int64_t groups = work.head_groups, parts = work.pixel_parts;
    F *map = nullptr;
    for (int64_t task; work.tasks.take(task);) {
        const int64_t part = task % parts, group = task / parts % groups, n = task / parts / groups;
        const int64_t first_head = M * group / groups, end_head = M * (group + 1) / groups;
        const int64_t low = part ? work.part_ends[part - 1] : 0, high = work.part_ends[part];
        const V *image = static_cast<const V *>(call.value) + n * call.value_stride_n;
        V *grad_image = static_cast<V *>(call.grad_value) + n * S * M * D;
        // In either case `sums` is where pixel 0 would be.
        F *sums = nullptr;
        int64_t stride = M * D, head_stride = D;
        if (work.direct) {
            sums = reinterpret_cast<F *>(grad_image);
            for (int64_t p = low; p < high; ++p) {
                memset(grad_image + (p * M + first_head) * D, 0, size_t((end_head - first_head) * D) * sizeof(V));
            }
        } else {
            if (!map) map = static_cast<F *>(malloc(size_t(work.most_pixels * D) * sizeof(F)));
            if (!map) return work.tasks.fail(DEFORM_ATTN_NO_MEMORY);
            sums = map;
            memset(sums, 0, size_t((high - low) * D) * sizeof(F));
            sums -= low * D;
            stride = D, head_stride = 0;
        }
        for (int64_t q = 0; q < Q; ++q) {
            const V *grad_output =
                static_cast<const V *>(call.grad_output) + n * call.grad_output_stride_n + q * call.grad_output_stride_q;
            if (!work.direct) {
                prefetch_row(call, n, q + 3, first_head);
                prefetch(grad_output, sizeof(V), 3 * call.grad_output_stride_q + first_head * D, D);
            }
            if (call.reference_points) place_references(plan, n, q, s);
            for (int64_t m = first_head; m < end_head; ++m) {
                F *base = sums + m * head_stride;
                for (int64_t d = 0; d < D; ++d) s.grad[d] = F(to_number(grad_output[m * D + d]));
                locate(plan, n, q, m, s);
                const int64_t items = corners<F, false>(plan, n, s);
                const bool all = parts == 1;
                if (!all_finite(s.grad, D) || !all_finite(s.share, items)) {
                    careful_scatter(plan, image + m * call.value_stride_m, base, stride, n, low, high, s);
                } else if (D == 4 * lanes) {
                    scatter<F, 4>(base, stride, s.pixel, s.share, items, D, s.grad, low, high, all);
                } else if (D == 8 * lanes) {
                    scatter<F, 8>(base, stride, s.pixel, s.share, items, D, s.grad, low, high, all);
                } else if (D == 2 * lanes) {
                    scatter<F, 2>(base, stride, s.pixel, s.share, items, D, s.grad, low, high, all);
                } else {
                    scatter<F, 0>(base, stride, s.pixel, s.share, items, D, s.grad, low, high, all);
                }
            }
        }
        if (!work.direct) {
            for (int64_t p = low; p < high; ++p) {
                V *to = grad_image + (p * M + first_head) * D;
                const F *from = sums + p * D;
                for (int64_t d = 0; d < D; ++d) from_number(from[d], to[d]);
            }
        }
    }
    free(map);
}

// Cut the S pixels into parts that expect equally many additions: a level's P points a row spread over its pixels.
inline void cut_pixels(const deform_attn_call &call, int64_t parts, int64_t *ends) {
    double total = 0;
    for (int64_t l = 0; l < call.L; ++l) {
        if (call.levels[4 * l] * call.levels[4 * l + 1] > 0) total += double(call.levels[4 * l + 3]);
    }
    int64_t part = 0;
    double before = 0;
    for (int64_t l = 0; l < call.L; ++l) {
        const int64_t pixels = call.levels[4 * l] * call.levels[4 * l + 1], first = call.levels[4 * l + 2];
        const double points = double(call.levels[4 * l + 3]);
        if (pixels == 0 || points == 0) continue;
        for (; part + 1 < parts; ++part) {
            const double wanted = total * double(part + 1) / double(parts) - before;
            if (wanted > points) break;
            ends[part] = first + int64_t(wanted / points * double(pixels));
        }
        before += points;
    }
    for (; part < parts; ++part) ends[part] = call.S;
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
    work.tasks.share_out(call, !call.grad_reference_points, sizeof(V));
    return work.tasks.run(call, widest<V, F, SlopesBody>(call.D), &work);
}

template <class V, class F>
int32_t scatter_of(const deform_attn_call &call) {
    if (!call.grad_value) return DEFORM_ATTN_OK;
    ScatterWork<F> work;
    if (!work.plan.prepare(&call)) return DEFORM_ATTN_NO_MEMORY;
    const int64_t tasks_an_image = (larger(call.threads, 1) + call.N - 1) / call.N, M = call.M;
    const int64_t reads = call.Q * call.T * (call.nearest ? 1 : 4);
    work.direct = sizeof(V) == sizeof(F) && (M == 1 || reads < reads_that_pay * call.S);
    work.head_groups = work.direct ? smaller(tasks_an_image, M) : M;
    work.pixel_parts = (tasks_an_image + M - 1) / M;
    work.part_ends = static_cast<int64_t *>(malloc(size_t(work.pixel_parts) * sizeof(int64_t)));
    if (!work.part_ends) return DEFORM_ATTN_NO_MEMORY;
    cut_pixels(call, work.pixel_parts, work.part_ends);
    work.most_pixels = 0;
    for (int64_t i = 0, low = 0; i < work.pixel_parts; low = work.part_ends[i++]) {
        work.most_pixels = larger(work.most_pixels, work.part_ends[i] - low);
    }
    work.tasks.count = call.N * work.head_groups * work.pixel_parts;
    return work.tasks.run(call, &scatter_body<V, F>, &work);
}

template <class V, class F>
int32_t backward_of(const deform_attn_call *call) {
    const size_t NQ = size_t(call->N * call->Q), points = NQ * size_t(call->M * call->T);
    bool nothing = points * size_t(call->D) == 0;
    if (!nothing) {
        nothing = true;
        for (int64_t l = 0; l < call->L; ++l) {
            const int64_t *level = call->levels + 4 * l;
            if (level[0] * level[1] * level[3] > 0) nothing = false;
        }
    }
    if (nothing) {
        if (call->grad_value) memset(call->grad_value, 0, size_t(call->N * call->S * call->M * call->D) * sizeof(V));
        if (call->grad_points) memset(call->grad_points, 0, 2 * points * size_t(bytes_of(call->points_dtype)));
        if (call->grad_weights) memset(call->grad_weights, 0, points * size_t(bytes_of(call->weights_dtype)));
        if (call->grad_reference_points) {
            const size_t count = NQ * size_t(call->reference_levels * call->reference_size);
            memset(call->grad_reference_points, 0, count * size_t(bytes_of(call->reference_dtype)));
        }
        return DEFORM_ATTN_OK;
    }
    const int32_t status = slopes_of<V, F>(*call);
    return status != DEFORM_ATTN_OK ? status : scatter_of<V, F>(*call);
}

}  // namespace

#endif
