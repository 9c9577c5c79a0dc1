// Tensors of torch as arrays: made, copied where the kernels need it, and judged to lie in memory.
#ifndef DEFORM_ATTN_TORCH_ARRAYS_H
#define DEFORM_ATTN_TORCH_ARRAYS_H

#include "torch_values.h"

namespace {

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

}  // namespace

#endif
