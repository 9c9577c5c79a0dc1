// What a call says about its points, spread out: one entry for each of the T points.
#ifndef DEFORM_ATTN_PLAN_H
#define DEFORM_ATTN_PLAN_H

#include "arena.h"
#include "simd.h"
#include "sizes.h"

namespace {

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
    // For halo maps (halo_map.h), where this call uses them:
    Int *pitch_bytes, *first_byte;  // of the point's level
    int64_t pixel_bytes, halo_pixels;
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

}  // namespace

#endif
