// Judges a call for callers whose arguments nobody has judged yet: deform_attn_check.
//
// Calls that pass are computed without an overflow: all products of sizes and of strides are bounded here.
#include "formats.h"
#include "sizes.h"

namespace {

// No machine has addresses for so many bytes.
constexpr int64_t too_many_bytes = int64_t(1) << 56;
constexpr int64_t too_many_threads = int64_t(1) << 20;

// One of the arrays of a call. An axis that is not there has size 1, a stride that the call does not give is 0.
struct CallArray {
    const void *pointer;
    bool optional;
    int64_t bytes;  // per number
    int64_t shape[5];
    int64_t strides[3];

    int32_t status() const {
        int64_t all = bytes;
        bool empty = false;
        for (const int64_t size : shape) {
            if (size > too_many_bytes / all) return DEFORM_ATTN_WRONG_SIZES;
            all *= larger(size, 1);  // also where another size is 0: the kernels multiply the rest, too
            empty |= size <= 0;
        }
        if (!pointer) return optional || empty ? DEFORM_ATTN_OK : DEFORM_ATTN_NULL_POINTER;
        for (int axis = 0; axis < 3; ++axis) {
            const int64_t most = too_many_bytes / bytes / larger(shape[axis], 1);
            if (strides[axis] < 0 || strides[axis] > most) return DEFORM_ATTN_WRONG_STRIDES;
        }
        const bool aligned = reinterpret_cast<uintptr_t>(pointer) % uintptr_t(bytes) == 0;
        return aligned || empty ? DEFORM_ATTN_OK : DEFORM_ATTN_MISALIGNED_POINTER;
    }
};

bool dtypes_fit(const deform_attn_call &call) {
    const int64_t references = call.reference_points ? call.reference_dtype : call.value_dtype;
    const int64_t dtypes[] = {call.value_dtype, call.points_dtype, call.weights_dtype, references};
    for (const int64_t dtype : dtypes) {
        if (dtype < DEFORM_ATTN_FLOAT32 || dtype > DEFORM_ATTN_FLOAT16) return false;
    }
    return call.compute_dtype == (call.value_dtype == DEFORM_ATTN_FLOAT64 ? DEFORM_ATTN_FLOAT64 : DEFORM_ATTN_FLOAT32);
}

bool options_fit(const deform_attn_call &call) {
    if (call.nearest != 0 && call.nearest != 1) return false;
    if (call.border != 0 && call.border != 1) return false;
    return call.threads >= 0 && call.threads <= too_many_threads;
}

bool references_fit(const deform_attn_call &call) {
    if (!call.reference_points) return !call.grad_reference_points;
    if (call.reference_size != 2 && call.reference_size != 4) return false;
    return call.reference_levels == call.L || (call.reference_levels == 1 && call.reference_stride_l == 0);
}

int32_t arrays_status(const deform_attn_call &call) {
    const int64_t N = call.N, S = call.S, M = call.M, D = call.D, Q = call.Q, T = call.T, L = call.L;
    const int64_t value = bytes_of(call.value_dtype), points = bytes_of(call.points_dtype);
    const int64_t weights = bytes_of(call.weights_dtype), references = bytes_of(call.reference_dtype);
    const int64_t size = call.reference_size, levels = call.reference_levels;
    const bool gradients = call.grad_value || call.grad_points || call.grad_weights || call.grad_reference_points;
    const bool backward = call.grad_output || gradients;
    const CallArray arrays[] = {
        {call.levels, false, 8, {L, 4, 1, 1, 1}, {}},
        {call.value, false, value, {N, S, M, D, 1}, {call.value_stride_n, call.value_stride_s, call.value_stride_m}},
        {call.points, false, points, {N, Q, M, T, 2}, {call.points_stride_n, call.points_stride_q}},
        {call.weights, false, weights, {N, Q, M, T, 1}, {call.weights_stride_n, call.weights_stride_q}},
        {call.reference_points, true, references, {N, Q, L, size, 1},
         {call.reference_stride_n, call.reference_stride_q, call.reference_stride_l}},
        {call.mask, true, 1, {N, S, 1, 1, 1}, {call.mask_stride_n}},
        {call.output, backward, value, {N, Q, M, D, 1}, {}},
        {call.grad_output, !backward, value, {N, Q, M, D, 1}, {call.grad_output_stride_n, call.grad_output_stride_q}},
        {call.grad_value, true, value, {N, S, M, D, 1}, {}},
        {call.grad_points, true, points, {N, Q, M, T, 2}, {}},
        {call.grad_weights, true, weights, {N, Q, M, T, 1}, {}},
        {call.grad_reference_points, true, references, {N, Q, levels, size, 1}, {}},
    };
    for (const CallArray &array : arrays) {
        const int32_t status = array.status();
        if (status != DEFORM_ATTN_OK) return status;
    }
    return DEFORM_ATTN_OK;
}

}  // namespace

extern "C" int32_t deform_attn_check(const deform_attn_call *call) {
    if (!call) return DEFORM_ATTN_NULL_POINTER;
    if (!dtypes_fit(*call)) return DEFORM_ATTN_WRONG_DTYPE;
    if (!options_fit(*call)) return DEFORM_ATTN_WRONG_OPTION;
    const int32_t arrays = arrays_status(*call);
    if (arrays != DEFORM_ATTN_OK) return arrays;
    if (!sizes_fit(*call)) return DEFORM_ATTN_WRONG_SIZES;  // which reads the levels
    return references_fit(*call) ? DEFORM_ATTN_OK : DEFORM_ATTN_WRONG_REFERENCES;
}
