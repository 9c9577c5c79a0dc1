// Picks the best instruction set of this machine once, when the library is loaded.
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "machine.h"

// The kernels of each row of CMakeLists.txt's table of instruction sets.
#define INSTRUCTION_SET(table, name, on_this_machine) extern "C" const Kernels table;
#include "instruction_sets.h"
#undef INSTRUCTION_SET

namespace {

struct InstructionSet {
    const char *name;
    bool on_this_machine;
    const Kernels *kernels;
};

struct Choice {
    const Kernels *kernels;
    const char *name;  // null: DEFORM_ATTN_ISA names no instruction set of this machine
    char all[64];      // names of this machine's instruction sets, best first
};

Choice choose() {
#if defined(__x86_64__)
    const Machine machine;
#endif
#define INSTRUCTION_SET(table, name, on_this_machine) {name, on_this_machine, &table},
    const InstructionSet sets[] = {
#include "instruction_sets.h"
    };
#undef INSTRUCTION_SET

    const char *asked = getenv("DEFORM_ATTN_ISA");
    if (asked && !*asked) asked = nullptr;
    Choice choice{};
    for (const InstructionSet &set : sets) {
        if (!set.on_this_machine) continue;
        if (choice.all[0]) strcat(choice.all, " ");
        strcat(choice.all, set.name);
        if (!choice.name && (!asked || strcmp(asked, set.name) == 0)) {
            choice.name = set.name;
            choice.kernels = set.kernels;
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
