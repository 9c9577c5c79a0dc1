/* The physical limit: as many loads and fused multiply-adds as the op needs, from addresses one after the other.
 *
 * What remains of the op when its arithmetic on addresses, its jumps over the map, its weights and its output are taken
 * away. Registers narrower than 64 bytes take a load of 64 bytes in two or four parts.
 */
#include <stdint.h>

#if defined(__AVX512F__)
#define WIDTH 64
#define SUMS 8 /* independent ones, enough to hide the latency of two fused multiply-adds a cycle */
#elif defined(__AVX__)
#define WIDTH 32
#define SUMS 10
#else
#define WIDTH 16
#define SUMS 10
#endif
#if defined(DOUBLE)
typedef double number;
#else
typedef float number;
#endif
typedef number lanes __attribute__((vector_size(WIDTH)));

typedef int32_t (*parallel_for)(
    int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t begin, int64_t end, void *context), void *context);

struct walk {
    const lanes *array;
    int64_t length; /* of the array, in lanes */
    number weight;
};

static void body(int64_t begin, int64_t end, void *context) {
    const struct walk *walk = context;
    lanes sums[SUMS] = {{0}};
    int64_t place = begin % walk->length;
    while (begin < end) {
        int64_t stretch = walk->length - place < end - begin ? walk->length - place : end - begin;
        const lanes *array = walk->array + place;
        int64_t i = 0;
        for (; i + SUMS <= stretch; i += SUMS) {
#pragma GCC unroll 16
            for (int k = 0; k < SUMS; k++) sums[k] += walk->weight * array[i + k];
        }
        for (; i < stretch; i++) sums[0] += walk->weight * array[i];
        begin += stretch;
        place = 0;
    }
    for (int k = 1; k < SUMS; k++) sums[0] += sums[k];
    volatile number kept = sums[0][0]; /* so that the compiler may not drop the work */
    (void)kept;
}

/* Loads 64 bytes `loads` times, walking over the `bytes` of `array` again and again. */
void limit(parallel_for run, const void *array, int64_t bytes, int64_t loads, double weight) {
    struct walk walk = {array, bytes / WIDTH, (number)weight};
    run(0, loads * (64 / WIDTH), 1024, body, &walk);
}
