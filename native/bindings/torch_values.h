// What torch hands to a kernel through its stable C interface, taken over by owners that give it back.
#ifndef DEFORM_ATTN_TORCH_VALUES_H
#define DEFORM_ATTN_TORCH_VALUES_H

#include <string.h>

#include "array.h"
#include "deform_attn.h"
#include "fault.h"
#include "numbers.h"
#include "torch_functions.h"

namespace {

// A call of torch that fails does so for want of memory, or by an error of ours.
inline bool done(Error error, const char *what, Fault &fault) {
    if (error == 0) return true;
    fault.add("deform_attn: torch could not %s", what);
    return false;
}

// A handle that one function of torch gives back.
template <typename Handle>
class Owner {
public:
    Owner() = default;
    explicit Owner(StableIValue value) { memcpy(&handle_, &value, sizeof handle_); }
    Owner(Owner &&other) : handle_(other.handle_) { other.handle_ = nullptr; }
    Owner &operator=(Owner &&other) {
        Handle taken = other.handle_;
        other.handle_ = handle_;
        handle_ = taken;
        return *this;
    }
    ~Owner() {
        if (handle_) give_back(handle_);
    }

protected:
    Handle handle_ = nullptr;

private:
    static void give_back(TensorHandle tensor) { aoti_torch_delete_tensor_object(tensor); }
    static void give_back(StringHandle string) { torch_delete_string(string); }
    static void give_back(ListHandle list) { torch_delete_list(list); }
};

class Tensor : public Owner<TensorHandle> {
public:
    using Owner::Owner;

    bool there() const { return handle_ != nullptr; }
    TensorHandle handle() const { return handle_; }

    // Hands it over, as a result.
    StableIValue release() {
        StableIValue value = 0;
        memcpy(&value, &handle_, sizeof handle_);
        handle_ = nullptr;
        return value;
    }

    int32_t dtype() const {
        int32_t dtype = -1;
        aoti_torch_get_dtype(handle_, &dtype);
        return dtype;
    }

    // Sizes and strides stay those of the tensor; where its numbers lie is not said yet.
    Array shape() const {
        Array array = no_array;
        if (!there()) return array;
        int64_t *sizes = nullptr, *strides = nullptr;
        aoti_torch_get_dim(handle_, &array.rank);
        aoti_torch_get_sizes(handle_, &sizes);
        aoti_torch_get_strides(handle_, &strides);
        array.sizes = sizes;
        array.strides = strides;
        return array;
    }
};

// A tensor, or none: then `value` is null, else it points to the tensor's.
inline Tensor optional_tensor(StableIValue value) {
    StableIValue *inner = nullptr;
    memcpy(&inner, &value, sizeof inner);
    if (!inner) return Tensor();
    const StableIValue tensor = *inner;
    delete_stable_ivalue(inner);
    return Tensor(tensor);
}

class String : public Owner<StringHandle> {
public:
    using Owner::Owner;

    const char *text() const {
        const char *text = nullptr;
        return torch_string_c_str(handle_, &text) == 0 && text ? text : "";
    }
};

class List : public Owner<ListHandle> {
public:
    using Owner::Owner;

    // Copies its items, ints or bools.
    bool read(Numbers &numbers, Fault &fault) const {
        size_t count = 0;
        if (!done(torch_list_size(handle_, &count), "read a list", fault)) return false;
        if (!numbers.resize(static_cast<int64_t>(count))) {
            fault.add("deform_attn: no memory for a list of %zu numbers", count);
            return false;
        }
        for (size_t i = 0; i < count; ++i) {
            StableIValue item = 0;
            if (!done(torch_list_get_item(handle_, i, &item), "read a list", fault)) return false;
            memcpy(&numbers[static_cast<int64_t>(i)], &item, sizeof item);
        }
        return true;
    }
};

}  // namespace

#endif
