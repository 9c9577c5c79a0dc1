// The type and the shape of a node's output, as far as its inputs say them.
#ifndef DEFORM_ATTN_ONNXRUNTIME_SHAPES_H
#define DEFORM_ATTN_ONNXRUNTIME_SHAPES_H

#include "onnxruntime_operator.h"

namespace {

// What a file says of an input: its type, and its sizes, -1 where they are free, with the names of those.
struct Known {
    static constexpr size_t most = 6;
    int32_t type = any_type;
    int64_t sizes[most] = {-1, -1, -1, -1, -1, -1};
    const char *names[most] = {"", "", "", "", "", ""};

    // Sizes stay free where the file says none, or another rank, which a run refuses.
    Known(const Api &api, const ShapeContext *context, int64_t input, size_t rank) {
        Shape *shape = nullptr;  // the context's own
        size_t axes = 0;
        if (!api.done(api.get_input_shape(context, static_cast<size_t>(input), &shape)) || !shape) return;
        api.done(api.get_type(shape, &type));
        if (!api.done(api.get_rank(shape, &axes)) || axes != rank) return;
        api.done(api.get_sizes(shape, sizes, rank));
        api.done(api.get_names(shape, names, rank));
    }
};

// The axes of the output: N, M and D are those of value, Q is that of the points.
inline Status infer_shape(const CustomOp *custom, ShapeContext *context) {
    const Operator &op = operator_of(custom);
    const Api &api = op.api;
    const Kind &kind = *op.kind;
    const Known value(api, context, kind.place(value_input), 4);
    const Known points(api, context, kind.place(points_input), kind.plugin ? 6 : 5);
    const int64_t M = value.sizes[2], D = value.sizes[3];
    const bool known = M >= 0 && D >= 0 && (D == 0 || M <= INT64_MAX / D);
    const int64_t sizes[] = {value.sizes[0], points.sizes[1], kind.heads ? M : known ? M * D : -1, D};
    const char *names[] = {value.names[0], points.names[1], kind.heads ? value.names[2] : "", value.names[3]};
    const size_t rank = kind.heads ? 4 : 3;
    Shape *shape = nullptr;
    Status status = api.create_shape(&shape);
    if (status) return status;
    // The type of value, not of the operator: ONNX Runtime calls the first of a name for all of them.
    status = api.set_type(shape, value.type == any_type ? op.type : value.type);
    if (!status) status = api.set_sizes(shape, sizes, rank);
    if (!status) status = api.set_names(shape, names, rank);
    if (!status) status = api.set_output_shape(context, 0, shape);
    api.release_shape(shape);
    return status;
}

}  // namespace

#endif
