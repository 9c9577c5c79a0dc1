// The kernels of one instruction set, as kernels.cpp exports them and dispatch.cpp sees them.
#ifndef DEFORM_ATTN_KERNELS_H
#define DEFORM_ATTN_KERNELS_H

#include "deform_attn.h"

struct Kernels {
    int32_t (*forward)(const deform_attn_call *);
    int32_t (*backward)(const deform_attn_call *);
};

#endif
