// The kernels for one instruction set: this file is compiled once for each, and exports the table DEFORM_ATTN_KERNELS.
//
// Nothing here may be shared between these copies: a function that the linker merges (as those of the C++ standard
// library's templates) could be kept in its most modern version and then run on an old machine. So: no standard
// library, everything in anonymous namespaces, and one exported table.
#include "backward.h"
#include "forward.h"
#include "kernels.h"

namespace {

int32_t forward(const deform_attn_call *call) {
    if (!sizes_fit(*call)) return DEFORM_ATTN_WRONG_SIZES;
    if (call->compute_dtype == DEFORM_ATTN_FLOAT64) return forward_of<double, double>(call);
    if (call->value_dtype == DEFORM_ATTN_BFLOAT16) return forward_of<BFloat16, float>(call);
    if (call->value_dtype == DEFORM_ATTN_FLOAT16) return forward_of<Float16, float>(call);
    return forward_of<float, float>(call);
}

int32_t backward(const deform_attn_call *call) {
    if (!sizes_fit(*call)) return DEFORM_ATTN_WRONG_SIZES;
    if (call->compute_dtype == DEFORM_ATTN_FLOAT64) return backward_of<double, double>(call);
    if (call->value_dtype == DEFORM_ATTN_BFLOAT16) return backward_of<BFloat16, float>(call);
    if (call->value_dtype == DEFORM_ATTN_FLOAT16) return backward_of<Float16, float>(call);
    return backward_of<float, float>(call);
}

}  // namespace

extern "C" {
extern const Kernels DEFORM_ATTN_KERNELS;
const Kernels DEFORM_ATTN_KERNELS = {forward, backward};
}
