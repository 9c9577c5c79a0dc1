// Backward, second pass: share * grad_output is added to each pixel of grad_value that a row reads.
//
// A thread owns some heads, or, where there are more threads than heads, some pixels of a head. A pixel's sum always
// runs in the order of the queries, so that the result is the same to the last bit for any number of threads.
#ifndef DEFORM_ATTN_BACKWARD_VALUE_H
#define DEFORM_ATTN_BACKWARD_VALUE_H

#include "corners.h"
#include "halo_cells.h"
#include "locations.h"
#include "scalar_row.h"
#include "tasks.h"

namespace {

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
            for (int v = 0; v < fixed; ++v) {
                sums[v] = multiply_add<Vec>(factor, load<Vec>(grad + v * n), load<Vec>(to + v * n));
            }
            for (int v = 0; v < fixed; ++v) store(to + v * n, sums[v]);
        } else {
            int64_t d = 0;
            for (; d + n <= D; d += n) store(to + d, multiply_add<Vec>(factor, load<Vec>(grad + d), load<Vec>(to + d)));
            if constexpr (n > 4) {
                using Four = Vector<F, 4>;
                const Four four = broadcast<Four>(share[i]);
                for (; d + 4 <= D; d += 4) {
                    store(to + d, multiply_add<Four>(four, load<Four>(grad + d), load<Four>(to + d)));
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

// Tasks of this pass: for each image some heads, or some pixels of one head.
template <class F>
struct ValueWork {
    Plan<F> plan;
    Tasks tasks;
    bool halo;             // whether the sums run in the halo map of one head (halo_map.h)
    bool direct;           // or in grad_value itself; else in a map of one head without a halo
    int64_t head_groups;   // groups of neighbouring heads
    int64_t pixel_parts;   // parts of the pixels
    int64_t *part_ends = nullptr;  // [pixel_parts] the pixels of part i lie before part_ends[i]; halo: with the halo
    int64_t most_pixels;           // of a part

    ~ValueWork() { free(part_ends); }
};

template <class V, class F>
void value_body(int64_t, int64_t, void *context) {
    constexpr int lanes = Wide<F>::lanes;
    ValueWork<F> &work = *static_cast<ValueWork<F> *>(context);
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
            const V *grad_output = grad_output_of<V>(call, n, q);
            if (call.reference_points) place_references(plan, n, q, s);
            for (int64_t m = first_head; m < end_head; ++m) {
                F *base = sums + m * head_stride;
                for (int64_t d = 0; d < D; ++d) s.grad[d] = F(to_number(grad_output[m * D + d]));
                locate(plan, n, q, m, s);
                const int64_t items = corners<F, false>(plan, n, s);
                const bool all = parts == 1;
                if (!all_finite(s.grad, D) || !all_finite(s.share, items)) {
                    const auto place = [&](int64_t t, int64_t row, int64_t column) -> F * {
                        const int64_t pixel = plan.first[t] + row * plan.row_length[t] + column;
                        return pixel < low || pixel >= high ? nullptr : base + pixel * stride;
                    };
                    scalar_value_gradients(plan, head_of<V>(call, n, m), n, s, place);
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

// As scatter, for the cells of a row and a halo map; `low` and `high` in bytes.
template <class F, bool nearest, int vectors>
INLINE void scatter_cells(F *map, int64_t pixel_bytes, const Cells<F> &cells, int64_t T, const F *grad, int64_t low,
                          int64_t high, bool all) {
    constexpr int n = Wide<F>::lanes;
    using Vec = Vector<F, n>;
    Vec held[vectors];
    for (int v = 0; v < vectors; ++v) held[v] = load<Vec>(grad + v * n);
    const auto add = [&](int64_t at, F share) INLINE_LAMBDA {
        if (!all && (at < low || at >= high)) return;
        F *to = reinterpret_cast<F *>(reinterpret_cast<char *>(map) + at);
        const Vec factor = broadcast<Vec>(share);
        for (int v = 0; v < vectors; ++v) store(to + v * n, multiply_add<Vec>(factor, held[v], load<Vec>(to + v * n)));
    };
    for (int64_t t = 0; t < T; ++t) {
        add(cells.top[t], cells.top_left[t]);
        if constexpr (nearest) continue;
        add(cells.top[t] + pixel_bytes, cells.top_right[t]);
        add(cells.bottom[t], cells.bottom_left[t]);
        add(cells.bottom[t] + pixel_bytes, cells.bottom_right[t]);
    }
}

// The sums of one head, or of some of its pixels, in a halo map; what has gathered in the halo is dropped.
template <class V, class F, bool nearest>
void value_halo_body(int64_t, int64_t, void *context) {
    ValueWork<F> &work = *static_cast<ValueWork<F> *>(context);
    const Plan<F> &plan = work.plan;
    const deform_attn_call &call = *plan.call;
    Scratch<F> s;
    Cells<F> cells;
    Lines<F> lines;
    if (!s.prepare(plan, true) || !cells.prepare(plan)) return work.tasks.fail(DEFORM_ATTN_NO_MEMORY);
    const int64_t S = call.S, M = call.M, Q = call.Q, D = call.D, C = whole_vectors<F>(D), parts = work.pixel_parts;
    if (!lines.allocate(work.most_pixels * C)) return work.tasks.fail(DEFORM_ATTN_NO_MEMORY);
    for (int64_t task; work.tasks.take(task);) {
        const int64_t part = task % parts, m = task / parts % M, n = task / parts / M;
        const int64_t low = part ? work.part_ends[part - 1] : 0, high = work.part_ends[part];
        memset(lines.data, 0, size_t((high - low) * C) * sizeof(F));
        F *const map = lines.data - low * C;  // where pixel 0 would be
        for (int64_t q = 0; q < Q; ++q) {
            const V *grad = grad_output_of<V>(call, n, q) + m * D;
            prefetch_row(call, n, q + 3, m);
            prefetch(grad, sizeof(V), 3 * call.grad_output_stride_q, D);
            if (call.reference_points) place_references(plan, n, q, s);
            locate(plan, n, q, m, s);
            const bool numbers = find_cells<F, nearest, false>(plan, s, cells);
            read_channels(grad, D, s.grad);
            if (!numbers || !all_finite(s.grad, C) || !all_finite(s.a, plan.padded)) {
                const auto place = [&](int64_t t, int64_t row, int64_t column) -> F * {
                    const int64_t at = plan.first_byte[t] + row * plan.pitch_bytes[t] + column * plan.pixel_bytes;
                    const int64_t pixel = at / plan.pixel_bytes;
                    return pixel < low || pixel >= high ? nullptr : map + pixel * C;
                };
                scalar_value_gradients(plan, head_of<V>(call, n, m), n, s, place);
                continue;
            }
            over_vectors<F>(C, [&](auto vectors, int64_t at) INLINE_LAMBDA {
                scatter_cells<F, nearest, vectors.value>(map + at, plan.pixel_bytes, cells, plan.T, s.grad + at,
                                                         low * plan.pixel_bytes, high * plan.pixel_bytes, parts == 1);
            });
        }
        V *to = static_cast<V *>(call.grad_value) + n * S * M * D + m * D;
        const uint8_t *mask = call.mask ? call.mask + n * call.mask_stride_n : nullptr;
        over_levels(call, [&](const HaloLevel &level, int64_t) {
            for (int64_t y = 0; y < level.H; ++y) {
                for (int64_t x = 0; x < level.W; ++x, to += M * D) {
                    const bool masked = mask && *mask++;
                    const int64_t pixel = level.first + y * level.pitch + x;
                    if (pixel < low || pixel >= high) continue;
                    if (masked) {
                        memset(to, 0, size_t(D) * sizeof(V));
                    } else {
                        write_channels(map + pixel * C, D, to);
                    }
                }
            }
        });
    }
}

// Cut the pixels, counted with the halo or without it, into parts that expect equally many additions: a level's P
// points a row spread over its pixels.
template <class F>
inline void cut_pixels(ValueWork<F> &work) {
    const deform_attn_call &call = *work.plan.call;
    const int64_t parts = work.pixel_parts;
    int64_t *ends = work.part_ends, part = 0;
    double total = 0, before = 0;
    const auto points_of = [](const Level &level) { return level.empty() ? 0 : double(level.P); };
    for (int64_t l = 0; l < call.L; ++l) total += points_of(level_of(call, l));
    over_levels(call, [&](const HaloLevel &around, int64_t l) {
        const Level level = level_of(call, l);
        const double points = points_of(level);
        if (points == 0) return;
        const int64_t begin = work.halo ? around.begin : level.first;
        const double pixels = work.halo ? double(around.end - around.begin) : double(level.pixels());
        for (; part + 1 < parts; ++part) {
            const double wanted = total * double(part + 1) / double(parts) - before;
            if (wanted > points) break;
            ends[part] = begin + int64_t(wanted / points * pixels);
        }
        before += points;
    });
    for (; part < parts; ++part) ends[part] = work.halo ? work.plan.halo_pixels : call.S;
}

template <class V, class F>
int32_t backward_value_of(const deform_attn_call &call) {
    if (!call.grad_value) return DEFORM_ATTN_OK;
    ValueWork<F> work;
    if (!work.plan.prepare(&call)) return DEFORM_ATTN_NO_MEMORY;
    const int64_t tasks_an_image = (larger(call.threads, 1) + call.N - 1) / call.N, M = call.M;
    const bool few = reads_of(call) < double(reads_that_pay * call.S);
    work.halo = !(few && sizeof(V) == sizeof(F)) && add_halo(work.plan);
    work.direct = !work.halo && sizeof(V) == sizeof(F) && (M == 1 || few);
    work.head_groups = work.direct ? smaller(tasks_an_image, M) : M;
    work.pixel_parts = (tasks_an_image + M - 1) / M;
    work.part_ends = static_cast<int64_t *>(malloc(size_t(work.pixel_parts) * sizeof(int64_t)));
    if (!work.part_ends) return DEFORM_ATTN_NO_MEMORY;
    cut_pixels(work);
    work.most_pixels = 0;
    for (int64_t i = 0, low = 0; i < work.pixel_parts; low = work.part_ends[i++]) {
        work.most_pixels = larger(work.most_pixels, work.part_ends[i] - low);
    }
    work.tasks.count = call.N * work.head_groups * work.pixel_parts;
    const auto halo_body = call.nearest ? &value_halo_body<V, F, true> : &value_halo_body<V, F, false>;
    if (work.halo) return work.tasks.run(call, halo_body, &work);
    return work.tasks.run(call, &value_body<V, F>, &work);
}

}  // namespace

#endif
