// Where the arrays of a call hold what a row reads, and how it is fetched ahead.
#ifndef DEFORM_ATTN_ADDRESSES_H
#define DEFORM_ATTN_ADDRESSES_H

#include "arena.h"
#include "formats.h"

namespace {

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

// `stride` in bytes: one multiplication and one addition.
template <class V, class Int>
INLINE const V *at_pixel(const V *base, Int pixel, int64_t stride) {
    return reinterpret_cast<const V *>(reinterpret_cast<const char *>(base) + int64_t(pixel) * stride);
}

// Fetch what a later row reads and writes; the rows of one head lie far apart.
INLINE void prefetch(const void *array, int64_t element_bytes, int64_t offset, int64_t count) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(array) + uintptr_t(offset * element_bytes);
    const uintptr_t end = at + uintptr_t(count * element_bytes);
    for (uintptr_t line = at / cache_line * cache_line; line < end; line += cache_line) {
        __builtin_prefetch(reinterpret_cast<const void *>(line));
    }
}

INLINE void prefetch_row(const deform_attn_call &call, int64_t n, int64_t q, int64_t m) {
    const int64_t T = call.T;
    prefetch(call.points, bytes_of(call.points_dtype),
             n * call.points_stride_n + q * call.points_stride_q + m * T * 2, T * 2);
    prefetch(call.weights, bytes_of(call.weights_dtype),
             n * call.weights_stride_n + q * call.weights_stride_q + m * T, T);
}

}  // namespace

#endif
