// A tensor as the bindings know it: where its numbers lie, and in which order.
#ifndef DEFORM_ATTN_ARRAY_H
#define DEFORM_ATTN_ARRAY_H

#include <stdint.h>

namespace {

constexpr int64_t no_dtype = -1;  // of an array with numbers that the kernels do not read

struct Array {
    const void *data;
    int64_t dtype;  // one of deform_attn_dtype, or no_dtype
    int64_t rank;   // -1: there is no such array
    const int64_t *sizes;
    const int64_t *strides;  // in numbers

    bool there() const { return rank >= 0; }

    bool empty() const {
        for (int64_t axis = 0; axis < rank; ++axis) {
            if (sizes[axis] == 0) return true;
        }
        return false;
    }

    // Whether the last `axes` axes lie one after the other without gaps.
    bool dense(int64_t axes) const {
        int64_t expected = 1;
        for (int64_t axis = rank - 1; axis >= rank - axes && axis >= 0; --axis) {
            if (sizes[axis] != 1 && strides[axis] != expected) return false;
            expected *= sizes[axis];
        }
        return true;
    }
};

constexpr Array no_array = {nullptr, no_dtype, -1, nullptr, nullptr};

}  // namespace

#endif
