// The kernels of one instruction set, as kernels.cpp exports them and dispatch.cpp sees them.
#ifndef DEFORM_ATTN_KERNELS_H
#define DEFORM_ATTN_KERNELS_H

#include "deform_attn.h"

struct Kernels {
    int32_t (*forward)(const deform_attn_call *);
    int32_t (*backward)(const deform_attn_call *);
};

// One table of functions for each row of CMakeLists.txt's table of instruction sets.
#define INSTRUCTION_SET(table, name, on_this_machine) extern "C" const Kernels table;
#include "instruction_sets.h"
#undef INSTRUCTION_SET

#endif
