// The kernels of one instruction set, as dispatch.cpp sees them.
#ifndef DEFORM_ATTN_KERNELS_H
#define DEFORM_ATTN_KERNELS_H

#include "deform_attn.h"

struct Kernels {
    int32_t (*forward)(const deform_attn_call *);
    int32_t (*backward)(const deform_attn_call *);
};

extern "C" {
extern const Kernels deform_attn_kernels_baseline;
#ifdef DEFORM_ATTN_X86
extern const Kernels deform_attn_kernels_v2;
extern const Kernels deform_attn_kernels_v3;
extern const Kernels deform_attn_kernels_v4;
#endif
}

#endif
