// The backward pass, in two passes over the rows, each only where one of its gradients is wanted.
#ifndef DEFORM_ATTN_BACKWARD_H
#define DEFORM_ATTN_BACKWARD_H

#include "backward_points.h"
#include "backward_value.h"

namespace {

template <class V, class F>
int32_t backward_of(const deform_attn_call *call) {
    const size_t NQ = size_t(call->N * call->Q), points = NQ * size_t(call->M * call->T);  // of arrays in memory
    bool nothing = true;
    for (int64_t l = 0; l < call->L; ++l) {
        const Level level = level_of(*call, l);
        if (!level.empty() && level.P > 0) nothing = false;
    }
    const int64_t sizes[] = {call->N, call->Q, call->M, call->D};
    for (const int64_t size : sizes) nothing |= size == 0;
    if (nothing) {
        if (call->grad_value) memset(call->grad_value, 0, size_t(call->N * call->S * call->M * call->D) * sizeof(V));
        if (call->grad_points) memset(call->grad_points, 0, 2 * points * size_t(bytes_of(call->points_dtype)));
        if (call->grad_weights) memset(call->grad_weights, 0, points * size_t(bytes_of(call->weights_dtype)));
        if (call->grad_reference_points) {
            const size_t count = NQ * size_t(call->reference_levels * call->reference_size);
            memset(call->grad_reference_points, 0, count * size_t(bytes_of(call->reference_dtype)));
        }
        return DEFORM_ATTN_OK;
    }
    const int32_t status = backward_points_of<V, F>(*call);
    return status != DEFORM_ATTN_OK ? status : backward_value_of<V, F>(*call);
}

}  // namespace

#endif
