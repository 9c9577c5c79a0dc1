// What this machine's processor can do, as far as the table of instruction sets asks.
//
// The compilers' own __builtin_cpu_supports knows other names from release to release, and needs a library of the
// compiler's that clang does not link on Windows.
#ifndef DEFORM_ATTN_MACHINE_H
#define DEFORM_ATTN_MACHINE_H

#if defined(__x86_64__)

#include <cpuid.h>
#include <stdint.h>
#include <string.h>

namespace {

class Machine {
public:
    Machine() {
        uint32_t eax, ebx, ecx, edx;
        if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) {
            basic_ = ecx;
            if (ecx >> 27 & 1) __asm__ volatile("xgetbv" : "=a"(saved_), "=d"(edx) : "c"(0));
        }
        if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) extended_ = ebx;
        if (__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx)) further_ = ecx;
    }

    // Whether it has a feature, called as gcc's __builtin_cpu_supports calls it.
    bool has(const char *name) const {
        const struct {
            const char *name;
            uint32_t word;
            int bit;
            uint32_t registers;  // that the system must save for each thread
        } features[] = {
            {"ssse3", basic_, 9, 0},          {"sse4.2", basic_, 20, 0},
            {"movbe", basic_, 22, 0},         {"popcnt", basic_, 23, 0},
            {"lzcnt", further_, 5, 0},        {"bmi", extended_, 3, 0},
            {"bmi2", extended_, 8, 0},        {"fma", basic_, 12, ymm},
            {"f16c", basic_, 29, ymm},        {"avx2", extended_, 5, ymm},
            {"avx512f", extended_, 16, zmm},  {"avx512dq", extended_, 17, zmm},
            {"avx512cd", extended_, 28, zmm}, {"avx512bw", extended_, 30, zmm},
            {"avx512vl", extended_, 31, zmm},
        };
        for (const auto &feature : features) {
            if (strcmp(feature.name, name) == 0)
                return (feature.word >> feature.bit & 1) && (saved_ & feature.registers) == feature.registers;
        }
        return false;
    }

private:
    static constexpr uint32_t ymm = 0x06, zmm = 0xE6;  // bits of the register XCR0

    // Words of features: leaf 1 ECX, leaf 7 EBX, leaf 0x80000001 ECX; and the lower half of XCR0.
    uint32_t basic_ = 0, extended_ = 0, further_ = 0, saved_ = 0;
};

}  // namespace

#endif
#endif
