// How many processors this process may use.
#ifndef DEFORM_ATTN_PROCESSORS_H
#define DEFORM_ATTN_PROCESSORS_H

#include <stdint.h>

#if defined(_WIN32)
#include <windows.h>
#elif defined(__linux__)
#include <sched.h>
#else
#include <unistd.h>
#endif

namespace {

inline int64_t processors() {
#if defined(_WIN32)
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    const int64_t count = static_cast<int64_t>(info.dwNumberOfProcessors);
#elif defined(__linux__)
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    const int64_t count = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
#else
    const int64_t count = static_cast<int64_t>(sysconf(_SC_NPROCESSORS_ONLN));
#endif
    return count > 1 ? count : 1;
}

}  // namespace

#endif
