/* ONNX Runtime's part of the C interface: operators for its files, on its own threads. */
#ifndef DEFORM_ATTN_ONNXRUNTIME_H
#define DEFORM_ATTN_ONNXRUNTIME_H

#include "deform_attn.h"

#ifdef __cplusplus
extern "C" {
#endif

/* As ONNX Runtime's own header calls them. */
struct OrtApiBase;
struct OrtSessionOptions;
struct OrtStatus;

/* Adds the operators of docs/onnx.md to the options of a session. ONNX Runtime itself calls it, by this name, when
 * `RegisterCustomOpsLibrary_V2` or its like in another language is given the path of this library. It may also be called
 * directly. It takes ONNX Runtime 1.17 or later. Returns null, or a status with what is in the way, which the caller releases.
 *
 * The operators compute on the CPU, whatever providers the session has. */
DEFORM_ATTN_API struct OrtStatus *RegisterCustomOps(
    struct OrtSessionOptions *options, const struct OrtApiBase *onnxruntime);

#ifdef __cplusplus
}
#endif

#endif
