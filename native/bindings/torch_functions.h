// The functions of torch's stable C interface that the binding calls, found in the torch of this process.
//
// Declared by hand, since torch is not needed to build the library. All are there in torch 2.10 and later.
#ifndef DEFORM_ATTN_TORCH_FUNCTIONS_H
#define DEFORM_ATTN_TORCH_FUNCTIONS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN  // without the macros `small` and the like
#define NOMINMAX
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace {

using StableIValue = uint64_t;  // an argument or a result: a number, the bits of one, or one of these handles
using TensorHandle = struct TensorOpaque *;
using ListHandle = struct ListOpaque *;
using StringHandle = struct StringOpaque *;
using LibraryHandle = struct LibraryOpaque *;
using BoxedKernel = void (*)(StableIValue *stack, uint64_t arguments, uint64_t results);
using Error = int32_t;  // 0: done

// The version of torch's interface that is declared here: 2.10.
constexpr uint64_t abi_version = uint64_t(2) << 56 | uint64_t(10) << 48;

#define TORCH_FUNCTIONS(F)                                                                                            \
    F(uint64_t, aoti_torch_abi_version, ())                                                                           \
    F(void, aoti_torch_check, (bool holds, const char *function, const char *file, uint32_t line, const char *text))  \
    F(Error, aoti_torch_library_init_def, (const char *space, const char *file, uint32_t line, LibraryHandle *made))  \
    F(Error, aoti_torch_library_init_impl,                                                                            \
      (const char *space, const char *key, const char *file, uint32_t line, LibraryHandle *made))                     \
    F(Error, aoti_torch_library_def, (LibraryHandle library, const char *schema))                                     \
    F(Error, torch_library_impl, (LibraryHandle library, const char *op, BoxedKernel kernel, uint64_t version))       \
    F(Error, aoti_torch_get_dim, (TensorHandle tensor, int64_t *rank))                                                \
    F(Error, aoti_torch_get_sizes, (TensorHandle tensor, int64_t **sizes))                                            \
    F(Error, aoti_torch_get_strides, (TensorHandle tensor, int64_t **strides))                                        \
    F(Error, aoti_torch_get_dtype, (TensorHandle tensor, int32_t *dtype))                                             \
    F(Error, aoti_torch_get_storage_size, (TensorHandle tensor, int64_t *bytes))                                      \
    F(Error, aoti_torch_get_storage_offset, (TensorHandle tensor, int64_t *offset))                                   \
    F(Error, torch_get_const_data_ptr, (TensorHandle tensor, const void **data))                                      \
    F(Error, torch_get_mutable_data_ptr, (TensorHandle tensor, void **data))                                          \
    F(Error, aoti_torch_empty_strided,                                                                                \
      (int64_t rank, const int64_t *sizes, const int64_t *strides, int32_t dtype, int32_t device, int32_t index,      \
       TensorHandle *made))                                                                                           \
    F(Error, aoti_torch_copy_, (TensorHandle to, TensorHandle from, int32_t non_blocking))                            \
    F(Error, aoti_torch_delete_tensor_object, (TensorHandle tensor))                                                  \
    F(size_t, aoti_torch_dtype_element_size, (int32_t dtype))                                                         \
    F(int32_t, aoti_torch_device_type_cpu, ())                                                                        \
    F(int32_t, aoti_torch_dtype_float32, ())                                                                          \
    F(int32_t, aoti_torch_dtype_float64, ())                                                                          \
    F(int32_t, aoti_torch_dtype_bfloat16, ())                                                                         \
    F(int32_t, aoti_torch_dtype_float16, ())                                                                          \
    F(int32_t, aoti_torch_dtype_int64, ())                                                                            \
    F(int32_t, aoti_torch_dtype_bool, ())                                                                             \
    F(Error, torch_list_size, (ListHandle list, size_t *count))                                                       \
    F(Error, torch_list_get_item, (ListHandle list, size_t i, StableIValue *item))                                    \
    F(Error, torch_delete_list, (ListHandle list))                                                                    \
    F(Error, torch_string_c_str, (StringHandle string, const char **text))                                            \
    F(Error, torch_delete_string, (StringHandle string))                                                              \
    F(Error, torch_get_num_threads, (uint32_t * count))                                                               \
    F(Error, torch_parallel_for,                                                                                      \
      (int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void *), void *context))

#define DECLARE(result, name, arguments) result(*name) arguments = nullptr;
TORCH_FUNCTIONS(DECLARE)
#undef DECLARE

// Gives back what torch allocated with C++'s `new`: by its own function, which came with 2.13, or C++'s `delete`.
void (*delete_stable_ivalue)(StableIValue *value) = nullptr;

// `module_at` finds the library at `path`, which the process has loaded, or, without one, all that it has.
#if defined(_WIN32)
using Module = HMODULE;
inline void *symbol(Module module, const char *name) { return reinterpret_cast<void *>(GetProcAddress(module, name)); }
inline Module module_at(const char *path) {
    if (!path) return GetModuleHandleA("torch_cpu.dll");
    wchar_t wide[1024];  // the path is in UTF-8, as Python encodes it
    return MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, 1024) ? LoadLibraryW(wide) : nullptr;
}
#else
using Module = void *;
inline void *symbol(Module module, const char *name) { return dlsym(module, name); }
inline Module module_at(const char *path) { return dlopen(path, RTLD_LAZY | RTLD_LOCAL); }
#endif

// Looks all of them up in `module`. Returns null, or the name of what is missing.
inline const char *find_torch_functions(Module module) {
#define FIND(result, name, arguments)                              \
    name = reinterpret_cast<decltype(name)>(symbol(module, #name)); \
    if (!name) return #name;
    TORCH_FUNCTIONS(FIND)
#undef FIND
    void *remove = symbol(module, "torch_delete_stable_ivalue");  // returns an error, which nobody could mend
    if (!remove) remove = symbol(module, "_ZdlPv");
    if (!remove) remove = reinterpret_cast<void *>(&free);  // Windows, where `delete` is of the same library
    delete_stable_ivalue = reinterpret_cast<decltype(delete_stable_ivalue)>(remove);
    return nullptr;
}

}  // namespace

#endif
