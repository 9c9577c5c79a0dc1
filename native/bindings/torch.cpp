// The ops, registered with torch: their kernels for the CPU, and their schemas.
//
// What torch's stable C interface offers is enough, so that the library is built without torch and serves every torch
// from 2.10 on. Errors are thrown by torch's own function, once everything is given back; none is thrown here.
#include "deform_attn_torch.h"
#include "torch_call.h"

namespace {

const char *const file = "deform_attn/native/bindings/torch.cpp";

// Apart from the kernel below, so that all is given back before an error is thrown across the frame.
bool run(Form form, StableIValue *stack, Fault &fault) { return Call(form, stack).run(stack, fault); }

template <bool raw, bool backward, bool sizes_tensor, bool judged>
void kernel(StableIValue *stack, uint64_t, uint64_t) {
    Fault fault;
    if (!run({raw, backward, sizes_tensor, judged}, stack, fault))
        aoti_torch_check(false, __func__, file, __LINE__, fault.text());
}

struct Op {
    const char *name;
    BoxedKernel kernel;
    const char *schema;
};

#define SAMPLE "Tensor sampling_locations, Tensor attention_weights, "
#define ATTEND                                                                                                      \
    "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, Tensor? padding_mask, float offset_scale, "
#define OPTIONS "SymInt[] num_points, str interpolation, str padding_mode"

// torch_ops/schema.py has the same schemas; a test compares them.
const Op ops[] = {
    {"multi_scale_deformable_attention", kernel<false, false, false, false>,
     "(Tensor value, SymInt[] spatial_shapes, " SAMPLE OPTIONS ") -> Tensor"},
    {"multi_scale_deformable_attention.Tensor", kernel<false, false, true, false>,
     "(Tensor value, Tensor spatial_shapes, " SAMPLE OPTIONS ") -> Tensor"},
    {"multi_scale_deformable_attention.judged", kernel<false, false, false, true>,
     "(Tensor value, " SAMPLE "int[] call) -> Tensor"},
    {"multi_scale_deformable_attention_backward", kernel<false, true, false, false>,
     "(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, " SAMPLE OPTIONS
     ", bool[] wanted) -> (Tensor, Tensor, Tensor)"},
    {"multi_scale_deformable_attention_backward.Tensor", kernel<false, true, true, false>,
     "(Tensor grad_output, Tensor value, Tensor spatial_shapes, " SAMPLE OPTIONS
     ", bool[] wanted) -> (Tensor, Tensor, Tensor)"},
    {"deformable_attention", kernel<true, false, false, false>,
     "(Tensor value, SymInt[] spatial_shapes, " ATTEND OPTIONS ") -> Tensor"},
    {"deformable_attention.Tensor", kernel<true, false, true, false>,
     "(Tensor value, Tensor spatial_shapes, " ATTEND OPTIONS ") -> Tensor"},
    {"deformable_attention.judged", kernel<true, false, false, true>,
     "(Tensor value, " ATTEND "int[] call) -> Tensor"},
    {"deformable_attention_backward", kernel<true, true, false, false>,
     "(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, " ATTEND OPTIONS
     ", bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)"},
    {"deformable_attention_backward.Tensor", kernel<true, true, true, false>,
     "(Tensor grad_output, Tensor value, Tensor spatial_shapes, " ATTEND OPTIONS
     ", bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)"},
};

Fault in_the_way;
bool registered = false;

bool register_all(const char *libtorch_cpu, bool define) {
    Fault &fault = in_the_way;
    fault = Fault();
    const Module torch = module_at(libtorch_cpu);
    if (!torch) {
        fault.add("libtorch_cpu: expected the path of torch's library, got %s, which does not load. "
                  "Pass that of libtorch_cpu in the folder torch/lib.",
                  libtorch_cpu ? libtorch_cpu : "none");
        return false;
    }
    if (const char *missing = find_torch_functions(torch)) {
        fault.add(libtorch_cpu ? "this torch has no %s"
                               : "this process is not linked with a torch that has %s. Pass the path of libtorch_cpu.",
                  missing);
        return false;
    }
    if (aoti_torch_abi_version() < abi_version) {
        fault.add("this torch is older than 2.10");
        return false;
    }
    dtypes = {{aoti_torch_dtype_float32(), aoti_torch_dtype_float64(), aoti_torch_dtype_bfloat16(),
               aoti_torch_dtype_float16()},
              aoti_torch_dtype_int64(), aoti_torch_dtype_bool(), aoti_torch_device_type_cpu()};
    // torch forgets the ops of a library that is deleted, so that these two are kept.
    LibraryHandle library = nullptr;
    if (define) {
        if (!done(aoti_torch_library_init_def("deform_attn", file, __LINE__, &library),
                  "define the ops (did Python define them? Pass 0 for define)", fault))
            return false;
        for (const Op &op : ops) {
            char schema[512];
            snprintf(schema, sizeof schema, "%s%s", op.name, op.schema);
            if (!done(aoti_torch_library_def(library, schema), "define an op", fault)) return false;
        }
    }
    if (!done(aoti_torch_library_init_impl("deform_attn", "CPU", file, __LINE__, &library), "register kernels", fault))
        return false;
    for (const Op &op : ops) {
        if (!done(torch_library_impl(library, op.name, op.kernel, abi_version), "register a kernel", fault)) return false;
    }
    return true;
}

}  // namespace

extern "C" const char *deform_attn_register_with_torch(const char *libtorch_cpu, int32_t define) {
    if (!registered) registered = register_all(libtorch_cpu, define != 0);
    return registered ? nullptr : in_the_way.text();
}

extern "C" const char *deform_attn_torch_schemas(void) {
    static char text[6144];
    size_t length = 0;
    for (const Op &op : ops)
        length += static_cast<size_t>(snprintf(text + length, sizeof text - length, "%s%s\n", op.name, op.schema));
    return text;
}
