// The ops as torch calls them: unpacks the arguments, runs the kernels on torch's threads, packs the results.
//
// What torch's stable C interface offers is enough, so that the library is built without torch and serves every torch
// from 2.10 on. Errors are thrown by torch's own function, once everything is given back; none is thrown here.
#include "deform_attn_torch.h"
#include "layout.h"
#include "torch_values.h"

namespace {

const char *const file = "deform_attn/native/bindings/torch.cpp";

// torch's number for each of deform_attn_dtype, and two more; asked for once.
struct Dtypes {
    int32_t floats[4];
    int32_t int64;
    int32_t boolean;
    int32_t cpu;

    int64_t code(int32_t dtype) const {
        for (int64_t i = 0; i < 4; ++i) {
            if (floats[i] == dtype) return i;
        }
        return no_dtype;
    }
};
Dtypes dtypes;

Tensor owned(TensorHandle handle) {
    StableIValue value = 0;
    memcpy(&value, &handle, sizeof handle);
    return Tensor(value);
}

Tensor empty_like(const Array &array, int32_t dtype, Fault &fault) {
    Numbers strides;
    int64_t step = 1;
    if (!strides.resize(array.rank)) {
        fault.add("deform_attn: no memory for %lld axes", static_cast<long long>(array.rank));
        return Tensor();
    }
    for (int64_t axis = array.rank - 1; axis >= 0; --axis) {
        strides[axis] = step;
        step *= array.sizes[axis] > 0 ? array.sizes[axis] : 1;
    }
    TensorHandle made = nullptr;
    const Error error =
        aoti_torch_empty_strided(array.rank, array.sizes, strides.begin(), dtype, dtypes.cpu, 0, &made);
    if (!done(error, "allocate a tensor (is there memory for it?)", fault)) return Tensor();
    return owned(made);
}

Tensor empty_of(const int64_t *sizes, int64_t rank, int32_t dtype, Fault &fault) {
    const Array array = {nullptr, no_dtype, rank, sizes, nullptr};
    return empty_like(array, dtype, fault);
}

Tensor converted(const Tensor &tensor, int32_t dtype, Fault &fault) {
    Tensor copy = empty_like(tensor.shape(), dtype, fault);
    if (copy.there() && !done(aoti_torch_copy_(copy.handle(), tensor.handle(), 0), "copy a tensor", fault))
        return Tensor();
    return copy;
}

// How many bytes lie between the first number of a tensor with numbers and the end of its last one.
int64_t extent(const Array &array, int64_t bytes) {
    int64_t last = 0;
    for (int64_t axis = 0; axis < array.rank; ++axis) last += (array.sizes[axis] - 1) * array.strides[axis];
    return (last + 1) * bytes;
}

// Whether the memory of a tensor holds its numbers, and where: torch has tensors whose memory was freed or shrunk.
bool in_memory(const Tensor &tensor, const char *name, Array &array, Fault &fault) {
    const int64_t bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(tensor.dtype()));
    int64_t held = 0, offset = 0;
    torch_get_const_data_ptr(tensor.handle(), &array.data);
    aoti_torch_get_storage_size(tensor.handle(), &held);
    aoti_torch_get_storage_offset(tensor.handle(), &offset);
    held -= offset * bytes;
    const int64_t needed = extent(array, bytes);
    if (array.data && held >= needed) return true;
    const long long wanted = needed, there = held > 0 ? held : 0;
    fault.add("%s: expected a tensor of %lld bytes in memory, got ", name, wanted);
    if (array.data) {
        fault.add("a storage of %lld bytes", there);
    } else {
        fault.add("one without memory");
    }
    fault.add(". Allocate it again: its storage was freed or resized.");
    return false;
}

// Says where the numbers of `tensor` lie, the one way by which an address reaches the kernels. Its last `axes` axes are
// dense and it is of `dtype`: if not, it is replaced by a copy that is.
bool array_of(Tensor &tensor, const char *name, int64_t axes, int32_t dtype, Array &array, Fault &fault) {
    array = tensor.shape();
    if (!array.there()) return true;
    if (!array.empty() && !in_memory(tensor, name, array, fault)) return false;
    if (tensor.dtype() != dtype || !array.dense(axes)) {
        tensor = converted(tensor, dtype, fault);
        if (!tensor.there()) return false;
        array = tensor.shape();
        torch_get_const_data_ptr(tensor.handle(), &array.data);
    }
    array.dtype = dtypes.code(dtype);
    return true;
}

// As array_of, for a tensor of floats of a dtype of its own, or of `dtype` where that is not 0.
bool float_array(Tensor &tensor, const char *name, int64_t axes, Array &array, Fault &fault, const int32_t *dtype = nullptr) {
    if (!tensor.there()) return true;
    const int32_t own = tensor.dtype();
    if (dtypes.code(own) == no_dtype) {
        array = tensor.shape();  // refused when the call is laid out
        return true;
    }
    const int32_t taken = dtype ? *dtype : own;
    return array_of(tensor, name, axes, taken, array, fault);
}

// Which op it is, and in which of its forms.
struct Form {
    bool raw;            // the op from raw offsets and logits, else the classic one
    bool backward;       // its backward op
    bool sizes_tensor;   // sizes come in a tensor, else in a list
    bool judged;         // the twin: tensors as the entry points take them, and one list for all else
};

// The arguments of an op, in the order of its schema, owned.
class Taken {
public:
    Taken(Form form, const StableIValue *at) {
        if (form.backward) grad_output = Tensor(*at++);
        value = Tensor(*at++);
        if (form.sizes_tensor) {
            sizes = Tensor(*at++);
        } else if (!form.judged) {
            shapes = List(*at++);
        }
        if (form.raw) references = Tensor(*at++);
        points = Tensor(*at++);
        weights = Tensor(*at++);
        if (form.raw) {
            mask = optional_tensor(*at++);
            scale = *at++;
        }
        counts = List(*at++);
        if (form.judged) return;
        interpolation = String(*at++);
        padding_mode = String(*at++);
        if (form.backward) wanted = List(*at++);
    }

    Tensor grad_output, value, sizes, references, points, weights, mask;
    List shapes, counts, wanted;  // of the twin, `counts` is the list of all else
    String interpolation, padding_mode;
    StableIValue scale = 0;
};

class Call {
public:
    Call(Form form, StableIValue *stack) : form_(form), taken_(form, stack) {}

    // Puts the results on the stack; false with the fault where there are none.
    bool run(StableIValue *stack, Fault &fault) {
        if (!lay_out_all(fault)) return false;
        uint32_t threads = 1;
        torch_get_num_threads(&threads);
        call_.threads = threads;
        call_.parallel_for = torch_parallel_for;
        return form_.backward ? backward(stack, fault) : forward(stack, fault);
    }

private:
    bool lay_out_all(Fault &fault) {
        Arguments &arguments = arguments_;
        arguments.raw = form_.raw;
        arguments.grouped = form_.judged;
        arguments.value = arguments.references = arguments.points = arguments.weights = arguments.mask = no_array;
        value_dtype_ = taken_.value.dtype();
        const int32_t float64 = dtypes.floats[DEFORM_ATTN_FLOAT64];
        const Tensor *const floats[] = {&taken_.value, &taken_.points, &taken_.weights, &taken_.references};
        bool in_float64 = false;
        for (const Tensor *tensor : floats) in_float64 |= tensor->there() && tensor->dtype() == float64;
        // Rare enough for a copy of value, where it is not float64 itself.
        computed_dtype_ = in_float64 ? float64 : value_dtype_;
        // All but N and Q, with or without an axis for the levels.
        const int64_t points_axes = taken_.points.shape().rank - 2, weights_axes = taken_.weights.shape().rank - 2;
        if (!float_array(taken_.value, "value", 1, arguments.value, fault, &computed_dtype_) ||
            !float_array(taken_.points, arguments.points_name(), points_axes, arguments.points, fault) ||
            !float_array(taken_.weights, arguments.weights_name(), weights_axes, arguments.weights, fault) ||
            !float_array(taken_.references, "reference_points", 1, arguments.references, fault))
            return false;
        if (taken_.mask.there()) {
            if (taken_.mask.dtype() != dtypes.boolean) {
                fault.add("padding_mask: expected dtype bool, got another one. Use padding_mask.bool(); True marks padding.");
                return false;
            }
            if (!array_of(taken_.mask, "padding_mask", 1, dtypes.boolean, arguments.mask, fault)) return false;
        }
        memcpy(&arguments.offset_scale, &taken_.scale, sizeof arguments.offset_scale);
        if (form_.judged) return read_judged(fault) && lay_out(arguments, call_, fault);
        arguments.interpolation = taken_.interpolation.text();
        arguments.padding_mode = taken_.padding_mode.text();
        if (!taken_.counts.read(arguments.counts, fault)) return false;
        if (form_.sizes_tensor ? !read_sizes(fault) : !taken_.shapes.read(arguments.shapes, fault)) return false;
        return lay_out(arguments, call_, fault);
    }

    // The twin's list: whether nearest, whether border, then H, W and P of each level.
    bool read_judged(Fault &fault) {
        Numbers all;
        if (!taken_.counts.read(all, fault)) return false;
        const int64_t levels = (all.count() - 2) / 3;
        if (all.count() != 2 + 3 * levels || !arguments_.shapes.resize(2 * levels) || !arguments_.counts.resize(levels)) {
            fault.add("call: expected two options and H, W, P of each level, got %lld numbers",
                      static_cast<long long>(all.count()));
            return false;
        }
        arguments_.interpolation = all[0] ? "nearest" : "bilinear";
        arguments_.padding_mode = all[1] ? "border" : "zeros";
        for (int64_t l = 0; l < levels; ++l) {
            arguments_.shapes[2 * l] = all[2 + 3 * l];
            arguments_.shapes[2 * l + 1] = all[3 + 3 * l];
            arguments_.counts[l] = all[4 + 3 * l];
        }
        return true;
    }

    bool read_sizes(Fault &fault) {
        Array sizes = taken_.sizes.shape();
        const int64_t levels = arguments_.counts.count();
        const int64_t expected[] = {levels, 2};
        if (!is_shape(sizes, expected, 2) || is_float(taken_.sizes)) {
            fault.add("spatial_shapes: expected an integer tensor [L, 2] = ");
            fault.add_shape(expected, 2);
            fault.add(", got ");
            fault.add_shape(sizes.sizes, sizes.rank);
            fault.add("%s. Give a size (H, W) and a count of points for each level.",
                      is_float(taken_.sizes) ? " of another dtype" : "");
            return false;
        }
        if (!array_of(taken_.sizes, "spatial_shapes", 2, dtypes.int64, sizes, fault)) return false;
        if (!arguments_.shapes.resize(2 * levels)) {
            fault.add("deform_attn: no memory for %lld levels", static_cast<long long>(levels));
            return false;
        }
        if (levels) memcpy(arguments_.shapes.begin(), sizes.data, static_cast<size_t>(2 * levels) * sizeof(int64_t));
        return true;
    }

    static bool is_float(const Tensor &tensor) {
        return dtypes.code(tensor.dtype()) != no_dtype || tensor.dtype() == dtypes.boolean;
    }

    bool forward(StableIValue *stack, Fault &fault) {
        const int64_t sizes[] = {call_.N, call_.Q, call_.M * call_.D};
        Tensor output = empty_of(sizes, 3, computed_dtype_, fault);
        if (!output.there()) return false;
        torch_get_mutable_data_ptr(output.handle(), &call_.output);
        if (!call_.output) call_.output = &nowhere_;
        return succeeded(deform_attn_forward(&call_), fault) && put(output, stack, fault);
    }

    bool backward(StableIValue *stack, Fault &fault) {
        Numbers wanted;
        if (!taken_.wanted.read(wanted, fault)) return false;
        const int64_t count = form_.raw ? 4 : 3;
        if (wanted.count() != count) {
            fault.add("wanted: expected %lld bools, one for each gradient, got %lld. Compare it with the op's results.",
                      static_cast<long long>(count), static_cast<long long>(wanted.count()));
            return false;
        }
        Array grad_output = no_array;
        if (!float_array(taken_.grad_output, "grad_output", 1, grad_output, fault, &computed_dtype_)) return false;
        const int64_t sizes[] = {call_.N, call_.Q, call_.M * call_.D};
        if (!expect_float("grad_output", grad_output, fault) || !expect_shape("grad_output", grad_output, sizes, 3, fault))
            return false;
        call_.grad_output = beginning(grad_output);
        call_.grad_output_stride_n = grad_output.strides[0];
        call_.grad_output_stride_q = grad_output.strides[1];

        const Arguments &of = arguments_;
        const Array *const arrays[] = {&of.value, form_.raw ? &of.references : &of.points,
                                       form_.raw ? &of.points : &of.weights, &of.weights};
        void **const places[] = {&call_.grad_value, form_.raw ? &call_.grad_reference_points : &call_.grad_points,
                                 form_.raw ? &call_.grad_points : &call_.grad_weights, &call_.grad_weights};
        Tensor grads[4];
        for (int64_t i = 0; i < count; ++i) {
            const int64_t none[] = {0};
            const int32_t dtype = dtypes.floats[arrays[i]->dtype];
            grads[i] = wanted[i] ? empty_like(*arrays[i], dtype, fault) : empty_of(none, 1, dtype, fault);
            if (!grads[i].there()) return false;
            if (!wanted[i]) continue;
            torch_get_mutable_data_ptr(grads[i].handle(), places[i]);
            if (!*places[i]) *places[i] = &nowhere_;
        }
        if (!succeeded(deform_attn_backward(&call_), fault)) return false;
        if (!put(grads[0], stack, fault)) return false;
        for (int64_t i = 1; i < count; ++i) stack[i] = grads[i].release();
        return true;
    }

    // Puts output or the gradient of value on the stack, in the dtype of value.
    bool put(Tensor &result, StableIValue *stack, Fault &fault) const {
        if (computed_dtype_ != value_dtype_) result = converted(result, value_dtype_, fault);
        stack[0] = result.release();
        return stack[0] != 0;
    }

    static bool succeeded(int32_t status, Fault &fault) {
        if (status != DEFORM_ATTN_OK) fault.add("%s", status_text(status));
        return status == DEFORM_ATTN_OK;
    }

    Form form_;
    Taken taken_;
    Arguments arguments_;
    deform_attn_call call_;
    int32_t value_dtype_ = 0, computed_dtype_ = 0;
    int64_t nowhere_ = 0;  // where results without numbers begin
};

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
