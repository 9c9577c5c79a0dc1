// The sizes of a call: its levels one by one, and whether the numbers that the caller gave can be one call's at all.
//
// Who passes the check below is safe from overflow: pixels and points are counted in int64_t, and whatever is
// multiplied further is either as large as an array of the caller's, which is in memory, or bounded where it is
// computed.
#ifndef DEFORM_ATTN_SIZES_H
#define DEFORM_ATTN_SIZES_H

#include "deform_attn.h"

namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// More than the pixels of any call: one of them is an int32_t where sums are floats.
constexpr int64_t too_many_pixels = int64_t(1) << 31;

struct Level {
    int64_t H, W, first, P;

    // The side that is not 0 may be anything then, and must not be computed with.
    bool empty() const { return H == 0 || W == 0; }
    int64_t pixels() const { return empty() ? 0 : H * W; }
};

inline Level level_of(const deform_attn_call &call, int64_t l) {
    const int64_t *level = call.levels + 4 * l;
    return {level[0], level[1], level[2], level[3]};
}

// Whether the levels lie one after the other in the S pixels and the T points of the call.
inline bool sizes_fit(const deform_attn_call &call) {
    const int64_t sizes[] = {call.N, call.S, call.M, call.D, call.Q, call.T, call.L};
    for (const int64_t size : sizes) {
        if (size < 0) return false;
    }
    if (call.S >= too_many_pixels) return false;
    int64_t pixels = 0, points = 0;
    for (int64_t l = 0; l < call.L; ++l) {
        const Level level = level_of(call, l);
        if (level.H < 0 || level.W < 0 || level.first != pixels) return false;
        if (level.P < 0 || level.P > call.T - points) return false;
        // A division, since the product may not fit.
        if (!level.empty() && level.H > (call.S - pixels) / level.W) return false;
        pixels += level.pixels();
        points += level.P;
    }
    return pixels == call.S && points == call.T;
}

}  // namespace

#endif
