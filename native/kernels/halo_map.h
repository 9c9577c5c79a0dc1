// One head's map in a thread's own memory, laid out for reading many times: a halo of further pixels around each
// level, so that all four corners of any point on the map or within a pixel of it can be read and none needs a check;
// channels in the compute type, filled up to whole vectors; masked pixels as 0.
//
// The halo holds 0, or with border the nearest pixel. The columns left and right of it are one: pixel -1 of a row is
// pixel W of the row before.
#ifndef DEFORM_ATTN_HALO_MAP_H
#define DEFORM_ATTN_HALO_MAP_H

#include "addresses.h"
#include "arena.h"
#include "channels.h"
#include "plan.h"

namespace {

// The map's pixels [begin, end) of one level. The level's own pixels begin at `first`, its rows lie `pitch` apart.
struct HaloLevel {
    int64_t H, W, begin, first, pitch, end;
};

// An empty level has no pixels, and none around it.
inline HaloLevel halo_level(const deform_attn_call &call, int64_t l, int64_t begin) {
    const Level level = level_of(call, l);
    if (level.empty()) return {0, 0, begin, begin, 0, begin};
    const int64_t H = level.H, W = level.W;
    // One row above, and two below: what lies off the map by a whole pixel has a second row, of weight 0.
    return {H, W, begin, begin + W + 2, W + 1, begin + (H + 3) * (W + 1) + 2};
}

// Calls step(level l as HaloLevel, l) for all levels, and returns the number of pixels of the whole map.
template <class Step>
INLINE int64_t over_levels(const deform_attn_call &call, Step step) {
    int64_t begin = 0;
    for (int64_t l = 0; l < call.L; ++l) {
        const HaloLevel level = halo_level(call, l, begin);
        step(level, l);
        begin = level.end;
    }
    return begin;
}

// Fill in what `plan` says about halo maps; return false where they are too large for its integers, or a level has a
// side that F may not hold exactly: a point beyond it could then lie beyond the halo. At least one level is not empty.
template <class F>
inline bool add_halo(Plan<F> &plan) {
    using Int = typename Wide<F>::Int;
    const deform_attn_call &call = *plan.call;
    plan.pixel_bytes = whole_vectors<F>(call.D) * int64_t(sizeof(F));
    bool exact = true;
    plan.halo_pixels = over_levels(call, [&](const HaloLevel &level, int64_t) {
        exact &= larger(level.H, level.W) <= Wide<F>::exact;
    });
    const double most = double(uint64_t(1) << (8 * sizeof(Int) - 1));
    if (!exact || double(plan.halo_pixels) * double(plan.pixel_bytes) >= most) return false;
    int64_t t = 0;
    over_levels(call, [&](const HaloLevel &level, int64_t l) {
        const Level own = level_of(call, l);
        for (int64_t p = 0; p < own.P; ++p, ++t) {
            plan.pitch_bytes[t] = Int(level.pitch * plan.pixel_bytes);
            plan.first_byte[t] = Int(level.first * plan.pixel_bytes);
            if (own.empty()) {
                // Its points all read the first two pixels of the map: those are of a halo's upper row, and 0.
                plan.most_x[t] = plan.most_y[t] = -1;
                plan.first_byte[t] = Int(plan.pixel_bytes);
            }
        }
    });
    return true;
}

// The map of one head of one image at a time.
template <class V, class F>
struct HaloMap {
    Lines<F> pixels;
    int64_t n = -1, m = -1;

    // Returns null without memory.
    const F *of(const Plan<F> &plan, int64_t image, int64_t head) {
        if (image == n && head == m) return pixels.data;
        const deform_attn_call &call = *plan.call;
        const int64_t C = whole_vectors<F>(call.D);
        if (!pixels.allocate(plan.halo_pixels * C)) return nullptr;
        n = image, m = head;
        const V *from = head_of<V>(call, n, m);
        const uint8_t *mask = call.mask ? call.mask + n * call.mask_stride_n : nullptr;
        F *const map = pixels.data;
        const int64_t ahead = 16 * call.value_stride_s, in_a_line = int64_t(cache_line / sizeof(V));
        const auto zero = [&](int64_t begin, int64_t end) {
            memset(map + begin * C, 0, size_t((end - begin) * C) * sizeof(F));
        };
        const auto copy = [&](int64_t to, int64_t pixel, int64_t count) {
            memcpy(map + to * C, map + pixel * C, size_t(count * C) * sizeof(F));
        };
        over_levels(call, [&](const HaloLevel &level, int64_t) {
            const int64_t H = level.H, W = level.W, pitch = level.pitch, below = level.first + H * pitch;
            zero(level.begin, level.first);
            for (int64_t y = 0; y < H; ++y) {
                F *to = map + (level.first + y * pitch) * C;
                for (int64_t x = 0; x < W; ++x, from += call.value_stride_s, to += C) {
                    // No hardware foresees such wide steps.
                    for (int64_t d = 0; d < call.D; d += in_a_line) __builtin_prefetch(from + ahead + d);
                    if (mask && *mask++) {
                        memset(to, 0, size_t(C) * sizeof(F));
                    } else {
                        read_channels(from, call.D, to);
                    }
                }
                const int64_t beside = level.first + y * pitch + W;
                call.border ? copy(beside, beside - 1, 1) : zero(beside, beside + 1);
            }
            zero(below, level.end);
            if (call.border && H) copy(below, below - pitch, pitch);
        });
        return map;
    }
};

}  // namespace

#endif
