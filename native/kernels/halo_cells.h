// From the points of a row to the cells of a halo map (halo_map.h) that they lie in: four pixels and their shares, or
// with nearest interpolation one.
#ifndef DEFORM_ATTN_HALO_CELLS_H
#define DEFORM_ATTN_HALO_CELLS_H

#include "halo_map.h"
#include "scratch.h"

namespace {

// Working memory of one thread for the cells of one row; each array has `padded` entries.
template <class F>
struct Cells {
    using Int = typename Wide<F>::Int;
    // Where the upper and the lower left pixel begin, in bytes; the right ones follow them. Nearest: `top` is all.
    Int *top, *bottom;
    F *top_left, *top_right, *bottom_left, *bottom_right;  // shares
    F *right, *below;  // backward: how far into the cell the point lies
    F *x_on, *y_on;    // backward: 1 where it moves with the coordinate, else 0
    Arena arena;

    bool prepare(const Plan<F> &plan) {
        lay_out(plan.padded);
        if (!arena.allocate()) return false;
        lay_out(plan.padded);
        return true;
    }

   private:
    void lay_out(int64_t padded) {
        top = arena.take<Int>(padded);
        bottom = arena.take<Int>(padded);
        F **const each[] = {&top_left, &top_right, &bottom_left, &bottom_right, &right, &below, &x_on, &y_on};
        for (F **array : each) *array = arena.take<F>(padded);
    }
};

// Turn scratch.x, .y and .a into cells; return false where a location is NaN, which only scalar_row.h gets right.
template <class F, bool nearest, bool backward>
INLINE bool find_cells(const Plan<F> &plan, const Scratch<F> &s, Cells<F> &cells) {
    constexpr int n = Wide<F>::lanes;
    using Int = typename Wide<F>::Int;
    using V = Vector<F, n>;
    using I = Vector<Int, n>;
    const I pixel_bytes = broadcast<I>(Int(plan.pixel_bytes));
    const V one = broadcast<V>(F(1)), zero{}, to_centre = broadcast<V>(F(nearest ? 0 : 0.5));
    const bool off_by_one = nearest && !plan.call->border;  // a point before the first pixel lies in the halo
    I not_numbers{};
    for (int64_t t = 0; t < plan.T; t += n) {
        const V width = load<V>(plan.width + t), height = load<V>(plan.height + t);
        const V left = off_by_one ? -one : load<V>(plan.least + t);
        const V right = load<V>(plan.most_x + t), bottom = load<V>(plan.most_y + t);
        V x = load<V>(s.x + t) * width - to_centre, y = load<V>(s.y + t) * height - to_centre;
        const V a = load<V>(s.a + t);
        not_numbers |= ((x != x) | (y != y)) & load<I>(plan.live + t);
        if constexpr (backward && !nearest) {
            const bool border = plan.call->border;
            const I x_on = border ? (x >= left) & (x < right) : (x > left) & (x < right);
            const I y_on = border ? (y >= left) & (y < bottom) : (y > left) & (y < bottom);
            store(cells.x_on + t, (border ? x_on : x_on & y_on) ? one : zero);
            store(cells.y_on + t, (border ? y_on : x_on & y_on) ? one : zero);
        }
        // Off the map by more than a pixel is like off by one: the halo is 0. NaN becomes `left`.
        x = smaller_lanes(larger_lanes(x, left), right);
        y = smaller_lanes(larger_lanes(y, left), bottom);
        I column, row;
        const V to_right = x - floor_of<F, n>(x, column), to_below = y - floor_of<F, n>(y, row);
        const I pitch = load<I>(plan.pitch_bytes + t);
        const I top = row * pitch + column * pixel_bytes + load<I>(plan.first_byte + t);
        store(cells.top + t, top);
        if constexpr (nearest) {
            store(cells.top_left + t, a);
            continue;
        }
        const V above = a * (one - to_below), below = a * to_below, to_left = one - to_right;
        store(cells.bottom + t, top + pitch);
        store(cells.top_left + t, above * to_left);
        store(cells.top_right + t, above * to_right);
        store(cells.bottom_left + t, below * to_left);
        store(cells.bottom_right + t, below * to_right);
        if constexpr (backward) {
            store(cells.right + t, to_right);
            store(cells.below + t, to_below);
        }
    }
    return !any_lane(not_numbers);
}

}  // namespace

#endif
