// Picks the best instruction set of this machine once, when the library is loaded.
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

namespace {

struct Level {
    const char *name;
    const Kernels *kernels;
};

struct Choice {
    const Kernels *kernels;
    const char *name;  // null: DEFORM_ATTN_ISA names no level of this machine
    char all[64];      // names of this machine's levels, best first
};

Choice choose() {
    Level levels[4];
    int count = 0;
#ifdef DEFORM_ATTN_X86
    __builtin_cpu_init();
    const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("ssse3") &&
                    __builtin_cpu_supports("popcnt");
    const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    if (v4) levels[count++] = {"x86-64-v4", &deform_attn_kernels_v4};
    if (v3) levels[count++] = {"x86-64-v3", &deform_attn_kernels_v3};
    if (v2) levels[count++] = {"x86-64-v2", &deform_attn_kernels_v2};
#endif
    levels[count++] = {"baseline", &deform_attn_kernels_baseline};

    Choice choice{levels[0].kernels, levels[0].name, {}};
    for (int i = 0; i < count; ++i) {
        if (i) strcat(choice.all, " ");
        strcat(choice.all, levels[i].name);
    }
    const char *asked = getenv("DEFORM_ATTN_ISA");
    if (asked && *asked) {
        choice.kernels = nullptr;
        choice.name = nullptr;
        for (int i = 0; i < count; ++i) {
            if (strcmp(asked, levels[i].name) == 0) {
                choice.kernels = levels[i].kernels;
                choice.name = levels[i].name;
            }
        }
    }
    return choice;
}

const Choice chosen = choose();

}  // namespace

extern "C" {

int32_t deform_attn_forward(const deform_attn_call *call) {
    return chosen.kernels ? chosen.kernels->forward(call) : DEFORM_ATTN_UNKNOWN_ISA;
}

int32_t deform_attn_backward(const deform_attn_call *call) {
    return chosen.kernels ? chosen.kernels->backward(call) : DEFORM_ATTN_UNKNOWN_ISA;
}

const char *deform_attn_isa(void) { return chosen.name; }

const char *deform_attn_isas(void) { return chosen.all; }

int64_t deform_attn_call_size(void) { return sizeof(deform_attn_call); }
}
