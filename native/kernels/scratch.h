// Working memory of one thread for one row at a time: a query's points in one head.
#ifndef DEFORM_ATTN_SCRATCH_H
#define DEFORM_ATTN_SCRATCH_H

#include "arena.h"
#include "plan.h"

namespace {

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
        F **const gradients[] = {&used_a, &grad_a, &grad_x, &grad_y};
        for (F **array : gradients) *array = arena.take<F>(padded);
        grad_reference = arena.take<F>(4 * plan.call->L);
        grad = arena.take<F>(D + 64);
        Factors<F> &f = factors;
        F **const each[] = {&f.left, &f.right, &f.top, &f.bottom, &f.at_left, &f.at_right, &f.at_top, &f.at_bottom};
        for (F **array : each) *array = arena.take<F>(padded);
        row = arena.take<char>(8 * 64);
    }
};

}  // namespace

#endif
