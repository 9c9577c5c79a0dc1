/* The C interface of the CPU kernels of deformable attention. No framework, no thread pool, no state of their own.
 *
 * Letters: N batch, S pixels of all levels, M heads, D channels a head, Q queries, L levels, T points a head (the sum
 * of the levels' counts P). Arrays are row-major; strides count elements of their array. (x, y) for points.
 */
#ifndef DEFORM_ATTN_H
#define DEFORM_ATTN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define DEFORM_ATTN_API __declspec(dllexport)
#else
#define DEFORM_ATTN_API __attribute__((visibility("default")))
#endif

enum deform_attn_dtype { DEFORM_ATTN_FLOAT32, DEFORM_ATTN_FLOAT64, DEFORM_ATTN_BFLOAT16, DEFORM_ATTN_FLOAT16 };

enum deform_attn_status {
    DEFORM_ATTN_OK,
    DEFORM_ATTN_NO_MEMORY,
    DEFORM_ATTN_UNKNOWN_ISA,
    DEFORM_ATTN_PARALLEL_FAILED,
    /* The levels do not add up to S and T, a size is negative, S is 2^31 or more, or an array cannot fit a memory. */
    DEFORM_ATTN_WRONG_SIZES,
    /* These are from deform_attn_check only. */
    DEFORM_ATTN_NULL_POINTER,       /* the call, or an array that has numbers and that this pass needs */
    DEFORM_ATTN_MISALIGNED_POINTER, /* not a multiple of the bytes of its array's numbers */
    DEFORM_ATTN_WRONG_DTYPE,        /* none of deform_attn_dtype, or compute_dtype is not the one for value_dtype */
    DEFORM_ATTN_WRONG_STRIDES,      /* negative, or the array would span 2^56 bytes */
    DEFORM_ATTN_WRONG_REFERENCES,   /* reference_size is not 2 or 4, reference_levels is not L or 1 (that with a level
                                       stride of 0), or grad_reference_points is set without reference_points */
    DEFORM_ATTN_WRONG_OPTION        /* nearest or border is not 0 or 1, or threads is not in 0 .. 2^20 */
};

/* Calls body(b, e, context) for ranges that together are [begin, end), each at least `grain` long where that can be;
 * returns 0 when all of it was done. It has the form of torch_parallel_for. NULL stands for a plain call. */
typedef int32_t (*deform_attn_parallel_for)(
    int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t begin, int64_t end, void *context), void *context);

/* One call, forward or backward, of one of the two entry points. Every field is 8 bytes wide.
 *
 * With reference_points == NULL it is the classic op: `points` are sampling locations, `weights` are used as they are.
 * Otherwise `points` are offsets around the references and `weights` are logits: the softmax over T happens inside. */
typedef struct {
    int64_t N, S, M, D, Q, T, L;
    int64_t value_dtype;   /* of value, output and grad_output */
    int64_t compute_dtype; /* FLOAT32 or FLOAT64: of coordinates and sums; FLOAT64 exactly when value_dtype is */
    int64_t nearest;       /* 1: the pixel that the point lies in; 0: bilinear */
    int64_t border;        /* 1: off the map lies the nearest pixel; 0: off the map lies 0 */
    int64_t threads;       /* how many parallel_for uses; the result does not depend on it */
    deform_attn_parallel_for parallel_for;
    const int64_t *levels; /* [L, 4]: H, W, first pixel, P; of an empty level H or W may be anything */

    const void *value; /* [N, S, M, D], the last axis dense */
    int64_t value_stride_n, value_stride_s, value_stride_m;
    const void *points; /* [N, Q, M, T, 2], the last three axes dense */
    int64_t points_dtype, points_stride_n, points_stride_q;
    const void *weights; /* [N, Q, M, T], the last two axes dense */
    int64_t weights_dtype, weights_stride_n, weights_stride_q;

    const void *reference_points; /* [N, Q, L (a level stride of 0: 1), reference_size], the last axis dense */
    int64_t reference_dtype, reference_stride_n, reference_stride_q, reference_stride_l;
    int64_t reference_size;    /* 2: (x, y); 4: (cx, cy, w, h) */
    int64_t reference_levels;  /* 1 or L: of grad_reference_points */
    const uint8_t *mask;       /* [N, S], the last axis dense, 1 = padding; or NULL */
    int64_t mask_stride_n;
    double offset_scale; /* with 4 numbers a reference: location = (cx, cy) + offset / P * (w, h) * offset_scale */

    void *output; /* [N, Q, M, D], dense; forward writes all of it */

    /* Backward; a gradient that is NULL is not computed. All are dense, and written completely. */
    const void *grad_output; /* [N, Q, M, D], the last two axes dense */
    int64_t grad_output_stride_n, grad_output_stride_q;
    void *grad_value;            /* [N, S, M, D] in value_dtype */
    void *grad_points;           /* [N, Q, M, T, 2] in points_dtype */
    void *grad_weights;          /* [N, Q, M, T] in weights_dtype */
    void *grad_reference_points; /* [N, Q, reference_levels, reference_size] in reference_dtype */
} deform_attn_call;

/* Whether the call can be computed: DEFORM_ATTN_OK, or the first deform_attn_status against it. For callers that take
 * their arguments from others: forward and backward themselves judge the sizes only, and trust the rest. With
 * grad_output or any gradient it is judged as a backward call, which may have an output, too; otherwise as a forward
 * call. Arrays without numbers may be NULL. It reads the call and its levels. It cannot see how long an array is. */
DEFORM_ATTN_API int32_t deform_attn_check(const deform_attn_call *call);

/* Both return a deform_attn_status. They may be called from several threads at once. */
DEFORM_ATTN_API int32_t deform_attn_forward(const deform_attn_call *call);
DEFORM_ATTN_API int32_t deform_attn_backward(const deform_attn_call *call);

/* A call given as one row of numbers, for callers without structs: whether it is from raw offsets and logits, whether
 * backward, threads, the address of parallel_for, nearest, border, the bits of offset_scale; the count of sizes, H and W
 * of each level; the count of levels, P of each; then the arrays value, reference points, points, weights, mask. An array
 * has no gaps: its address, dtype, rank (-1: not there) and sizes. Forward ends with the address of the output; backward
 * with grad_output, an array, and the addresses of the gradients of value, reference points, points and weights, 0 where
 * not wanted. The arguments are judged against each other. Returns 0, or 1 with what is wrong in `text`. */
DEFORM_ATTN_API int32_t deform_attn_run_row(const int64_t *row, char *text, int64_t size);

/* The instruction set in use, one of those that deform_attn_isas() lists, best first and separated by spaces, for this
 * machine. The environment variable DEFORM_ATTN_ISA may name a lower one; NULL where it names none of them. */
DEFORM_ATTN_API const char *deform_attn_isa(void);
DEFORM_ATTN_API const char *deform_attn_isas(void);

/* sizeof(deform_attn_call), for callers that lay it out themselves. */
DEFORM_ATTN_API int64_t deform_attn_call_size(void);

#ifdef __cplusplus
}
#endif
#endif
