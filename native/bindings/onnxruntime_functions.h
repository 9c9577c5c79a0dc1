// The functions of ONNX Runtime's C interface that the binding calls, by their places in its table of functions.
//
// Declared by hand, since its headers are not needed to build the library. The table only ever grows at its end: what
// version 17, which came with ONNX Runtime 1.17, has is at the same places in every later one. A stack is one for all on
// the 64-bit machines that the library is built for: no calling convention is named.
#ifndef DEFORM_ATTN_ONNXRUNTIME_FUNCTIONS_H
#define DEFORM_ATTN_ONNXRUNTIME_FUNCTIONS_H

#include <stddef.h>
#include <stdint.h>

#include "deform_attn.h"
#include "deform_attn_onnxruntime.h"

namespace {

using Status = OrtStatus *;  // null: done
using Options = OrtSessionOptions;
using Table = struct OpaqueTable;
using Domain = struct OpaqueDomain;
using NodeInfo = struct OpaqueNodeInfo;
using Context = struct OpaqueContext;
using ShapeContext = struct OpaqueShapeContext;
using Shape = struct OpaqueShape;  // type and sizes of a tensor
using Value = struct OpaqueValue;
struct CustomOp;

// The version of the table that is declared here, and the oldest one, which every ONNX Runtime has.
constexpr uint32_t api_version = 17, first_api_version = 1;

// Codes of a status.
constexpr int32_t fail_code = 1, argument_code = 2;

// Types of a tensor's numbers.
enum ElementType : int32_t {
    any_type = 0,
    float32_type = 1,
    int32_type = 6,
    int64_type = 7,
    bool_type = 9,
    float16_type = 10,
    float64_type = 11,
    bfloat16_type = 16
};

inline int64_t dtype_of(int32_t type, int64_t otherwise) {
    switch (type) {
    case float32_type:
        return DEFORM_ATTN_FLOAT32;
    case float64_type:
        return DEFORM_ATTN_FLOAT64;
    case bfloat16_type:
        return DEFORM_ATTN_BFLOAT16;
    case float16_type:
        return DEFORM_ATTN_FLOAT16;
    default:
        return otherwise;
    }
}

// What a runtime gives to whoever asks for a table.
struct ApiBase {
    const Table *(*table)(uint32_t version);
    const char *(*version)();
};

#define ONNXRUNTIME_FUNCTIONS(F)                                                                                      \
    F(0, Status, create_status, (int32_t code, const char *text), (code, text))                                       \
    F(26, Status, create_domain, (const char *name, Domain **made), (name, made))                                     \
    F(27, Status, add_op, (Domain * domain, const CustomOp *op), (domain, op))                                        \
    F(28, Status, add_domain, (Options * options, Domain *domain), (options, domain))                                 \
    F(51, Status, get_data, (Value * value, void **data), (value, data))                                              \
    F(57, Status, create_shape, (Shape * *made), (made))                                                              \
    F(58, Status, set_type, (Shape * shape, int32_t type), (shape, type))                                             \
    F(59, Status, set_sizes, (Shape * shape, const int64_t *sizes, size_t rank), (shape, sizes, rank))                \
    F(60, Status, get_type, (const Shape *shape, int32_t *type), (shape, type))                                       \
    F(61, Status, get_rank, (const Shape *shape, size_t *rank), (shape, rank))                                        \
    F(62, Status, get_sizes, (const Shape *shape, int64_t *sizes, size_t rank), (shape, sizes, rank))                 \
    F(63, Status, get_names, (const Shape *shape, const char **names, size_t rank), (shape, names, rank))             \
    F(65, Status, get_shape, (const Value *value, Shape **made), (value, made))                                       \
    F(85, Status, get_float, (const NodeInfo *node, const char *name, float *number), (node, name, number))           \
    F(87, Status, get_string, (const NodeInfo *node, const char *name, char *text, size_t *size),                     \
      (node, name, text, size))                                                                                       \
    F(90, Status, get_input, (const Context *context, size_t i, const Value **value), (context, i, value))            \
    F(91, Status, get_output, (Context * context, size_t i, const int64_t *sizes, size_t rank, Value **value),        \
      (context, i, sizes, rank, value))                                                                               \
    F(93, void, release_status, (Status status), (status))                                                            \
    F(99, void, release_shape, (Shape * shape), (shape))                                                              \
    F(101, void, release_domain, (Domain * domain), (domain))                                                         \
    F(163, Status, get_ints, (const NodeInfo *node, const char *name, int64_t *numbers, size_t *count),               \
      (node, name, numbers, count))                                                                                   \
    F(268, Status, get_input_shape, (const ShapeContext *context, size_t i, Shape **shape), (context, i, shape))      \
    F(270, Status, set_output_shape, (const ShapeContext *context, size_t i, const Shape *shape),                     \
      (context, i, shape))                                                                                            \
    F(271, Status, set_names, (Shape * shape, const char **names, size_t rank), (shape, names, rank))                 \
    F(274, Status, run_parallel,                                                                                      \
      (const Context *context, void (*body)(void *of, size_t i), size_t count, size_t batches, void *of),             \
      (context, body, count, batches, of))

class Api {
public:
    explicit Api(const Table *table) : table_(table) {}

    const Table *table() const { return table_; }

#define CALL(place, result, name, parameters, arguments)                          \
    result name parameters const {                                                \
        using Function = result(*) parameters;                                    \
        return reinterpret_cast<const Function *>(table_)[place] arguments;       \
    }
    ONNXRUNTIME_FUNCTIONS(CALL)
#undef CALL

    // Whether `status` is that of something done; gives it back if not.
    bool done(Status status) const {
        if (status) release_status(status);
        return !status;
    }

private:
    const Table *table_;
};

// An operator as ONNX Runtime reads it, with the fields of version 17.
struct CustomOp {
    uint32_t version;
    void *(*create_without_status)(const CustomOp *op, const Table *table, const NodeInfo *node);  // null
    const char *(*name)(const CustomOp *op);
    const char *(*provider)(const CustomOp *op);  // null: the CPU
    int32_t (*input_type)(const CustomOp *op, size_t i);
    size_t (*input_count)(const CustomOp *op);
    int32_t (*output_type)(const CustomOp *op, size_t i);
    size_t (*output_count)(const CustomOp *op);
    void (*run_without_status)(void *kernel, Context *context);  // null
    void (*destroy)(void *kernel);
    int32_t (*input_kind)(const CustomOp *op, size_t i);  // 0: required
    int32_t (*output_kind)(const CustomOp *op, size_t i);
    int32_t (*input_memory)(const CustomOp *op, size_t i);  // 0: that of the provider
    int32_t (*least_variadic_inputs)(const CustomOp *op);
    int32_t (*variadic_inputs_are_alike)(const CustomOp *op);
    int32_t (*least_variadic_outputs)(const CustomOp *op);
    int32_t (*variadic_outputs_are_alike)(const CustomOp *op);
    Status (*create)(const CustomOp *op, const Table *table, const NodeInfo *node, void **kernel);
    Status (*run)(void *kernel, Context *context);
    Status (*infer_shapes)(const CustomOp *op, ShapeContext *context);
    int32_t (*first_version)(const CustomOp *op);
    int32_t (*last_version)(const CustomOp *op);
};

}  // namespace

#endif
