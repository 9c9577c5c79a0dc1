// Working memory of a call or a thread, freed with its owner: many small arrays, or one that begins at a cache line.
#ifndef DEFORM_ATTN_ARENA_H
#define DEFORM_ATTN_ARENA_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace {

// Memory for many small arrays in one piece, zeroed.
struct Arena {
    char *memory = nullptr;
    size_t used = 0, size = 0;

    // The same sequence of take() calls runs twice: without memory to add up the size, then to hand it out.
    template <class T>
    T *take(int64_t count) {
        T *array = memory ? reinterpret_cast<T *>(memory + used) : nullptr;
        used += (size_t(count) * sizeof(T) + 63) / 64 * 64;
        return array;
    }
    bool allocate() {
        size = used;
        used = 0;
        memory = static_cast<char *>(malloc(size ? size : 1));
        if (memory) memset(memory, 0, size);
        return memory != nullptr;
    }
    ~Arena() { free(memory); }
};

constexpr uintptr_t cache_line = 64;

// Memory that starts at a line of the cache: where pixels fill whole lines, none of them may straddle one more.
template <class T>
struct Lines {
    void *memory = nullptr;
    T *data = nullptr;

    bool allocate(int64_t count) {
        if (memory) return true;
        memory = malloc(size_t(count) * sizeof(T) + cache_line);
        data = reinterpret_cast<T *>((reinterpret_cast<uintptr_t>(memory) + cache_line - 1) / cache_line * cache_line);
        return memory != nullptr;
    }
    ~Lines() { free(memory); }
};

}  // namespace

#endif
