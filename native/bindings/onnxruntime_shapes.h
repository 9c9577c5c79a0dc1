// The type and the shape of a node's output, as far as its inputs say them.
#ifndef DEFORM_ATTN_ONNXRUNTIME_SHAPES_H
#define DEFORM_ATTN_ONNXRUNTIME_SHAPES_H

#include <stdio.h>

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

// The axes of the output, one after the other. ONNX Runtime takes a size of -1 without a name for a number: so each axis
// has a size or a name. A name says which axes have the same size, so that a name made up here is given once.
struct Axes {
    static constexpr size_t most = 4;
    size_t rank = 0;
    int64_t sizes[most];
    const char *names[most];
    char texts[most][40];

    void add(int64_t size, const char *name) {
        static int64_t made_up = 0;
        sizes[rank] = size;
        names[rank] = size >= 0 ? "" : name;
        if (size < 0 && !*name) {
            const long long number = __atomic_add_fetch(&made_up, 1, __ATOMIC_RELAXED);
            snprintf(texts[rank], sizeof texts[rank], "deform_attn_%lld", number);
            names[rank] = texts[rank];
        }
        ++rank;
    }
};

// N, M and D are those of value, Q is that of the points.
inline Status infer_shape(const CustomOp *custom, ShapeContext *context) {
    const Operator &op = operator_of(custom);
    const Api &api = op.api;
    const Kind &kind = *op.kind;
    const Known value(api, context, kind.place(value_input), 4);
    const Known points(api, context, kind.place(points_input), kind.plugin ? 6 : 5);
    const int64_t M = value.sizes[2], D = value.sizes[3];
    Axes axes;
    axes.add(value.sizes[0], value.names[0]);
    axes.add(points.sizes[1], points.names[1]);
    if (kind.heads) {
        axes.add(M, value.names[2]);
        axes.add(D, value.names[3]);
    } else {
        const bool known = M >= 0 && D >= 0 && (D == 0 || M <= INT64_MAX / D);
        axes.add(known ? M * D : -1, "");
    }
    Shape *shape = nullptr;
    Status status = api.create_shape(&shape);
    if (status) return status;
    // The type of value, not of the operator: ONNX Runtime calls the first of a name for all of them.
    status = api.set_type(shape, value.type == any_type ? op.type : value.type);
    if (!status) status = api.set_sizes(shape, axes.sizes, axes.rank);
    if (!status) status = api.set_names(shape, axes.names, axes.rank);
    if (!status) status = api.set_output_shape(context, 0, shape);
    api.release_shape(shape);
    return status;
}

}  // namespace

#endif
