// A call of an op as torch makes it: its arguments taken over, the kernels run on torch's threads, the results made.
#ifndef DEFORM_ATTN_TORCH_CALL_H
#define DEFORM_ATTN_TORCH_CALL_H

#include "layout.h"
#include "torch_arrays.h"

namespace {

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
        ints = List(*at++);
        if (form.judged) return;
        interpolation = String(*at++);
        padding_mode = String(*at++);
        if (form.backward) wanted = List(*at++);
    }

    Tensor grad_output, value, sizes, references, points, weights, mask;
    List shapes, ints, wanted;  // ints: the counts of points, or of the twin all numbers of the call
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
        if (!taken_.ints.read(arguments.counts, fault)) return false;
        if (form_.sizes_tensor ? !read_sizes(fault) : !taken_.shapes.read(arguments.shapes, fault)) return false;
        return lay_out(arguments, call_, fault);
    }

    // The twin's list: whether nearest, whether border, then H, W and P of each level.
    bool read_judged(Fault &fault) {
        Numbers all;
        if (!taken_.ints.read(all, fault)) return false;
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
        if (!lay_out_grad_output(grad_output, call_, fault)) return false;

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

}  // namespace

#endif
