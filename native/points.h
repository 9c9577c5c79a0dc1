// From one row of points (those of one query and head) to the pixels that it reads and how much each one counts.
//
// locate() brings the points of a row into planar arrays, corners() turns them into a list of (pixel, share) items, many
// points at once. corners() is optimistic: it does not look for NaN or infinity, but makes sure that they come out at
// the end of the sums, where a row that is not finite is done again with care (careful.h).
#ifndef DEFORM_ATTN_POINTS_H
#define DEFORM_ATTN_POINTS_H

#include <stdlib.h>
#include <string.h>

#include "numbers.h"
#include "sizes.h"

namespace {

// Memory for many small arrays in one piece, zeroed.
struct Arena {
    char *memory = nullptr;
    size_t used = 0, size = 0;

    // The same sequence of take() calls runs twice: without memory to add up the size, then to hand it out.
    template <class T>
    T *take(int64_t count) {
        T *array = memory ? reinterpret_cast<T *>(memory + used) : nullptr;
        used += (size_t(count) * sizeof(T) + 63) / 64 * 64;
        return array;
    }
    bool allocate() {
        size = used;
        used = 0;
        memory = static_cast<char *>(malloc(size ? size : 1));
        if (memory) memset(memory, 0, size);
        return memory != nullptr;
    }
    ~Arena() { free(memory); }
};

// The largest number of F that is <= n, and the smallest that is >= n. Both are n itself up to Wide<F>::exact.
template <class F>
inline F at_most(int64_t n) {
    int64_t whole = n;
    while (int64_t(F(whole)) > n) --whole;
    return F(whole);
}
template <class F>
inline F at_least(int64_t n) {
    int64_t whole = n;
    while (int64_t(F(whole)) < n) ++whole;
    return F(whole);
}

// What a call says about its points, spread out: one entry for each of the T points, padded to whole vectors.
template <class F>
struct Plan {
    using Int = typename Wide<F>::Int;
    const deform_attn_call *call;
    int64_t T, padded;
    bool some_empty, all_empty;
    F *width, *height;         // of the point's level; 1 for an empty one
    F *count;                  // P of the point's level, at least 1
    Int *last_column, *last_row;  // W - 1 and H - 1
    Int *row_length, *first;      // W and the first pixel of its level
    // Where a point may lie, in pixels, least <= x <= most_x with border and least <= x < most_x without. These bounds
    // are as good as the integers 0, W - 1 and W, though W itself may be none of F's numbers: no number of F lies
    // between most_x and the integer that it stands for.
    F *least, *most_x, *most_y;
    Int *live;                 // all bits set, or 0 for points of empty levels
    Int *present;              // all bits set, or 0 for the padding
    int32_t *level;
    // For framed maps (maps.h), where this call uses them:
    Int *pitch_bytes, *first_byte;  // of the point's level
    int64_t pixel_bytes, framed_pixels;
    Arena arena;

    bool prepare(const deform_attn_call *c) {
        constexpr int n = Wide<F>::lanes;
        call = c;
        T = c->T;
        padded = (T + n - 1) / n * n;
        lay_out();
        if (!arena.allocate()) return false;
        lay_out();
        some_empty = false;
        all_empty = true;
        int64_t t = 0;
        for (int64_t l = 0; l < c->L; ++l) {
            const Level own = level_of(*c, l);
            const bool empty = own.empty();
            const int64_t H = empty ? 1 : own.H, W = empty ? 1 : own.W, P = own.P;
            if (P > 0 && empty) some_empty = true;
            if (P > 0 && !empty) all_empty = false;
            const F right = c->border ? at_most<F>(W - 1) : at_least<F>(W);
            const F below = c->border ? at_most<F>(H - 1) : at_least<F>(H);
            for (int64_t p = 0; p < P; ++p, ++t) {
                width[t] = F(W);
                height[t] = F(H);
                count[t] = F(P);
                last_column[t] = Int(W - 1);
                last_row[t] = Int(H - 1);
                row_length[t] = Int(W);
                first[t] = Int(empty ? 0 : own.first);
                least[t] = c->border || c->nearest ? 0 : -1;
                most_x[t] = right;
                most_y[t] = below;
                live[t] = empty ? 0 : -1;
                present[t] = -1;
                level[t] = int32_t(l);
            }
        }
        for (; t < padded; ++t) width[t] = height[t] = count[t] = 1, row_length[t] = 1;
        return true;
    }

   private:
    void lay_out() {
        width = arena.take<F>(padded);
        height = arena.take<F>(padded);
        count = arena.take<F>(padded);
        Int **const bounds[] = {&last_column, &last_row, &row_length, &first};
        for (Int **array : bounds) *array = arena.take<Int>(padded);
        F **const ends[] = {&least, &most_x, &most_y};
        for (F **array : ends) *array = arena.take<F>(padded);
        live = arena.take<Int>(padded);
        present = arena.take<Int>(padded);
        level = arena.take<int32_t>(padded);
        pitch_bytes = arena.take<Int>(padded);
        first_byte = arena.take<Int>(padded);
    }
};

// The shares of a point's four corners, factored by columns and rows: what the gradients are made of.
template <class F>
struct Factors {
    F *left, *right, *top, *bottom;              // shares of the columns and rows; 0 off the map
    F *at_left, *at_right, *at_top, *at_bottom;  // 1 where the share depends on the coordinate, else 0
};

// Working memory of one thread, for one row at a time. Nothing in it grows with N, Q, M or S.
template <class F>
struct Scratch {
    using Int = typename Wide<F>::Int;
    F *x, *y;   // [padded] where the points are, as fractions of the map
    F *a;       // [padded] attention weights
    F *used_a;  // [padded] backward: the same, 0 off the map
    F *raw;     // [2 * padded] numbers of another format, converted
    F *rx, *ry, *rw, *rh;  // [padded] the query's references, one entry a point
    Int *pixel;            // [4 * padded] the items: which pixel ...
    F *share;              // [4 * padded] ... counts how much
    F *dot;                // [4 * padded] backward: <grad_output, pixel>
    F *grad_a, *grad_x, *grad_y;  // [padded]
    F *grad_reference;            // [4 * L]
    F *sum;                       // [D]
    F *grad;                      // [D]
    Factors<F> factors;           // each [padded]
    char *row;                    // one row of grad_output in value's format
    Arena arena;

    bool prepare(const Plan<F> &plan, bool backward) {
        lay_out(plan, backward);
        if (!arena.allocate()) return false;
        lay_out(plan, backward);
        return true;
    }

   private:
    void lay_out(const Plan<F> &plan, bool backward) {
        const int64_t padded = plan.padded, D = plan.call->D;
        F **const rows[] = {&x, &y, &a, &rx, &ry, &rw, &rh};
        for (F **array : rows) *array = arena.take<F>(padded + Wide<F>::lanes);
        raw = arena.take<F>(2 * padded);
        pixel = arena.take<Int>(4 * padded + Wide<F>::lanes);
        share = arena.take<F>(4 * padded + Wide<F>::lanes);
        sum = arena.take<F>(D);
        if (!backward) return;
        dot = arena.take<F>(4 * padded + Wide<F>::lanes);
        F **const slopes[] = {&used_a, &grad_a, &grad_x, &grad_y};
        for (F **array : slopes) *array = arena.take<F>(padded);
        grad_reference = arena.take<F>(4 * plan.call->L);
        grad = arena.take<F>(D + 64);
        Factors<F> &f = factors;
        F **const each[] = {&f.left, &f.right, &f.top, &f.bottom, &f.at_left, &f.at_right, &f.at_top, &f.at_bottom};
        for (F **array : each) *array = arena.take<F>(padded);
        row = arena.take<char>(8 * 64);
    }
};

// Pixel 0 of one head of one image.
template <class V>
INLINE const V *head_of(const deform_attn_call &call, int64_t n, int64_t m) {
    return static_cast<const V *>(call.value) + n * call.value_stride_n + m * call.value_stride_m;
}

// The gradient of one query's output, all heads.
template <class V>
INLINE const V *grad_output_of(const deform_attn_call &call, int64_t n, int64_t q) {
    return static_cast<const V *>(call.grad_output) + n * call.grad_output_stride_n + q * call.grad_output_stride_q;
}

// Spread the references of query (n, q) over its points.
template <class F>
NOT_INLINE void place_references(const Plan<F> &plan, int64_t n, int64_t q, Scratch<F> &s) {
    constexpr int lanes = Wide<F>::lanes;
    using V = Vector<F, lanes>;
    const deform_attn_call &call = *plan.call;
    const Array references{call.reference_points, call.reference_dtype};
    const int64_t offset = n * call.reference_stride_n + q * call.reference_stride_q;
    const bool boxes = call.reference_size == 4;
    int64_t first = 0;
    for (int64_t l = 0; l < call.L; ++l) {
        F copy[4];
        const F *reference = references.view(offset + l * call.reference_stride_l, call.reference_size, copy);
        const int64_t end = first + call.levels[4 * l + 3];
        // Whole vectors: what they write past a level's end is overwritten by the next level, or lies in the padding.
        for (int64_t t = first; t < end; t += lanes) {
            store(s.rx + t, broadcast<V>(reference[0]));
            store(s.ry + t, broadcast<V>(reference[1]));
            if (boxes) {
                store(s.rw + t, broadcast<V>(reference[2]));
                store(s.rh + t, broadcast<V>(reference[3]));
            }
        }
        first = end;
    }
}

// Attention weights below it count as 0: whether there are smaller ones depends on the hardware and its modes.
template <class F>
constexpr F smallest_normal = F(sizeof(F) == 4 ? 0x1p-126 : 0x1p-1022);

// logits -> attention weights, in place. a is padded to whole vectors; the padding is left as -infinity's weight, 0.
template <class F>
INLINE void softmax(const Plan<F> &plan, F *a) {
    constexpr int n = Wide<F>::lanes;
    using V = Vector<F, n>;
    const int64_t T = plan.T, padded = plan.padded;
    const F infinity = F(__builtin_inf());
    for (int64_t t = T; t < padded; ++t) a[t] = -infinity;
    V highest = load<V>(a);
    for (int64_t t = n; t < padded; t += n) {
        const V next = load<V>(a + t);
        highest = next > highest ? next : highest;
    }
    const F high = highest_lane<F, n>(highest);
    V sums{};
    for (int64_t t = 0; t < padded; t += n) {
        // The padding's -infinity must not meet a `high` of -infinity.
        V e = exponential<n>(load<V>(a + t) - high);
        if (t + n > T) e = load<Vector<typename Wide<F>::Int, n>>(plan.present + t) ? e : V{};
        sums += e;
        store(a + t, e);
    }
    const F share = 1 / sum_of_lanes<F, n>(sums);
    for (int64_t t = 0; t < padded; t += n) {
        const V weight = load<V>(a + t) * share;
        store(a + t, weight < smallest_normal<F> ? V{} : weight);  // NaN stays
    }
}

// Fill scratch.x, .y and .a for the row of query (n, q) and head m.
template <class F>
INLINE void locate(const Plan<F> &plan, int64_t n, int64_t q, int64_t m, Scratch<F> &s) {
    constexpr int lanes = Wide<F>::lanes;
    using V = Vector<F, lanes>;
    const deform_attn_call &call = *plan.call;
    const int64_t T = plan.T, whole = T / lanes * lanes;

    const int64_t at = n * call.points_stride_n + q * call.points_stride_q + m * T * 2;
    const F *points = Array{call.points, call.points_dtype}.view(at, 2 * T, s.raw);
    for (int64_t t = 0; t < whole; t += lanes) {
        V x, y;
        deinterleave<F>(points + 2 * t, x, y);
        store(s.x + t, x);
        store(s.y + t, y);
    }
    for (int64_t t = whole; t < T; ++t) s.x[t] = points[2 * t], s.y[t] = points[2 * t + 1];

    const int64_t weights_at = n * call.weights_stride_n + q * call.weights_stride_q + m * T;
    const F *weights = Array{call.weights, call.weights_dtype}.view(weights_at, T, s.a);
    if (weights != s.a) {
        for (int64_t t = 0; t < whole; t += lanes) store(s.a + t, load<V>(weights + t));
        for (int64_t t = whole; t < T; ++t) s.a[t] = weights[t];
    }
    if (!call.reference_points || T == 0) return;

    softmax(plan, s.a);
    // The roundings are those of reference.py, so that both agree on which weights are exactly 0.
    if (call.reference_size == 2) {
        for (int64_t t = 0; t < plan.padded; t += lanes) {
            store(s.x + t, load<V>(s.rx + t) + load<V>(s.x + t) / load<V>(plan.width + t));
            store(s.y + t, load<V>(s.ry + t) + load<V>(s.y + t) / load<V>(plan.height + t));
        }
    } else {
        const F scale = F(call.offset_scale);
        for (int64_t t = 0; t < plan.padded; t += lanes) {
            const V count = load<V>(plan.count + t);
            store(s.x + t, load<V>(s.rx + t) + load<V>(s.x + t) / count * load<V>(s.rw + t) * scale);
            store(s.y + t, load<V>(s.ry + t) + load<V>(s.y + t) / count * load<V>(s.rh + t) * scale);
        }
    }
}

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
            // 0, but NaN where a coordinate or the weight is NaN (or infinite, which careful.h sorts out)
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
