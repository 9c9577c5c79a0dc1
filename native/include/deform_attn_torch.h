/* Torch's part of the C interface: the ops `deform_attn::*` for CPU tensors, in a process that has torch. */
#ifndef DEFORM_ATTN_TORCH_H
#define DEFORM_ATTN_TORCH_H

#include "deform_attn.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Registers the CPU kernels with the torch of this process, once; further calls do nothing. Needs torch 2.10 or later.
 *
 * `libtorch_cpu` is the path of torch's library, or NULL where the process is linked with it. `define` is 1 in a
 * process without Python, where nobody has told torch the ops' schemas yet; deform_attn cannot be imported after that.
 * Returns NULL, or what is in the way. There are no derivatives without Python: calls are those of inference. */
DEFORM_ATTN_API const char *deform_attn_register_with_torch(const char *libtorch_cpu, int32_t define);

/* The schemas that `define` defines, each ended by a line feed. */
DEFORM_ATTN_API const char *deform_attn_torch_schemas(void);

#ifdef __cplusplus
}
#endif

#endif
