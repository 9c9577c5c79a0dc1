// The table of levels that the kernels read, made from the sizes of the maps and the points on each, both judged.
#ifndef DEFORM_ATTN_LEVEL_TABLE_H
#define DEFORM_ATTN_LEVEL_TABLE_H

#include <stdint.h>

#include "fault.h"
#include "numbers.h"

namespace {

constexpr int64_t most_size = (int64_t(1) << 31) - 1;
constexpr int64_t most_pixels = int64_t(1) << 47;
constexpr int64_t most_shown = 8;

// The sizes of `shapes` as Python writes pairs, `open` and `close` around them.
inline void add_pairs(Fault &fault, const Numbers &shapes, const char *open, const char *close, int64_t most) {
    const int64_t levels = shapes.count() / 2;
    fault.add("%s", open);
    for (int64_t l = 0; l < levels && l < most; ++l) {
        const long long H = shapes[2 * l], W = shapes[2 * l + 1];
        fault.add("%s(%lld, %lld)", l ? ", " : "", H, W);
    }
    fault.add("%s%s", levels > most ? ", ..." : "", close);
}

// Whether the sizes fit a value of S pixels. The messages are those of sizes that Python judges (shape_checks.py).
inline bool sizes_add_up(const Numbers &shapes, int64_t S, Fault &fault) {
    const int64_t levels = shapes.count() / 2;
    bool small = true, few = true;
    int64_t pixels = 0;
    for (int64_t l = 0; l < levels; ++l) {
        const int64_t H = shapes[2 * l], W = shapes[2 * l + 1];
        if (H < 0 || W < 0) {
            fault.add(
                "spatial_shapes: expected pairs of ints (H, W), one for each level, got the negative size (%lld, %lld). "
                "Sizes are ints, rows first: (H, W).",
                static_cast<long long>(H), static_cast<long long>(W));
            return false;
        }
        small &= H <= most_size && W <= most_size;
        if (small && few) pixels += H * W;
        few &= pixels <= most_pixels;
    }
    const char *close = levels == 1 ? ",)" : ")";
    if (!small) {
        fault.add("spatial_shapes: expected sizes below 2^31, got ");
        add_pairs(fault, shapes, "(", close, most_shown);
        fault.add(". Check that each pair is the (H, W) of a map.");
    } else if (!few) {
        fault.add("spatial_shapes: expected fewer than 2^47 pixels, got ");
        add_pairs(fault, shapes, "(", close, most_shown);
        fault.add(". No memory holds so many; use smaller maps.");
    } else if (pixels != S) {
        fault.add("spatial_shapes: expected sizes H*W that add up to S, got ");
        add_pairs(fault, shapes, "[", "]", levels);
        fault.add(
            ", %lld pixels in all, but value has S = %lld. Check the order (H, W) and the number of levels.",
            static_cast<long long>(pixels), static_cast<long long>(S));
    } else {
        return true;
    }
    return false;
}

// Whether the counts of points fit T points a head.
inline bool counts_add_up(const Numbers &counts, int64_t T, Fault &fault) {
    int64_t points = 0;
    bool fit = true;
    for (int64_t l = 0; l < counts.count(); ++l) {
        fit &= counts[l] >= 0 && counts[l] <= T - points;
        if (fit) points += counts[l];
    }
    if (fit && points == T) return true;
    fault.add("num_points: expected counts >= 0 that add up to T = %lld, got ", static_cast<long long>(T));
    fault.add_shape(counts.begin(), counts.count());
    fault.add(". Compare them with the points.");
    return false;
}

// Writes the rows H, W, first pixel, P of judged levels.
inline void write_levels(const Numbers &shapes, const Numbers &counts, int64_t *rows) {
    int64_t first = 0;
    for (int64_t l = 0; l < counts.count(); ++l, rows += 4) {
        const int64_t H = shapes[2 * l], W = shapes[2 * l + 1];
        rows[0] = H;
        rows[1] = W;
        rows[2] = first;
        rows[3] = counts[l];
        first += H * W;
    }
}

}  // namespace

#endif
