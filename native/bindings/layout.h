// From the arguments of an op to a call of the kernels: the arguments judged against each other, and laid out.
#ifndef DEFORM_ATTN_LAYOUT_H
#define DEFORM_ATTN_LAYOUT_H

#include <string.h>

#include "array.h"
#include "deform_attn.h"
#include "fault.h"
#include "level_table.h"
#include "numbers.h"

namespace {

// The arguments of an op, forward. The arrays are dense in the axes that deform_attn.h names.
struct Arguments {
    bool raw;      // points and weights are raw offsets and logits around the references
    bool grouped;  // points and weights may have an axis for the levels, and references may lack theirs
    Array value, references, points, weights, mask;
    double offset_scale;
    Numbers shapes;  // H, W of each level
    Numbers counts;  // P of each level
    Numbers rows;    // the table of levels, for the call
    const char *interpolation, *padding_mode;

    const char *points_name() const { return raw ? "sampling_offsets" : "sampling_locations"; }
    const char *weights_name() const { return raw ? "attention_logits" : "attention_weights"; }
};

// What a status of the kernels means to the caller of an op.
inline const char *status_text(int32_t status) {
    switch (status) {
    case DEFORM_ATTN_NO_MEMORY:
        return "deform_attn: no memory for the kernels' working arrays";
    case DEFORM_ATTN_PARALLEL_FAILED:
        return "deform_attn: a thread failed";
    case DEFORM_ATTN_WRONG_SIZES:
        return "value: expected fewer than 2^31 pixels, and tensors that a memory can hold, got more. Use smaller maps.";
    default:
        return "deform_attn: DEFORM_ATTN_ISA names no instruction set of this machine";
    }
}

inline bool is_shape(const Array &array, const int64_t *sizes, int64_t rank) {
    if (array.rank != rank) return false;
    for (int64_t axis = 0; axis < rank; ++axis) {
        if (array.sizes[axis] != sizes[axis]) return false;
    }
    return true;
}

// Whether an array has these sizes, of which `grouped`, if it is not null, is another form.
inline bool expect_shape(
    const char *name, const Array &array, const int64_t *sizes, int64_t rank, Fault &fault,
    const int64_t *grouped = nullptr, int64_t grouped_rank = 0) {
    if (is_shape(array, sizes, rank) || (grouped && is_shape(array, grouped, grouped_rank))) return true;
    fault.add("%s: expected ", name);
    fault.add_shape(sizes, rank);
    fault.add(", got ");
    fault.add_shape(array.sizes, array.rank);
    fault.add(". Compare it with value and spatial_shapes.");
    return false;
}

inline bool expect_float(const char *name, const Array &array, Fault &fault) {
    if (array.dtype != no_dtype) return true;
    fault.add("%s: expected a tensor of dtype float32, float64, bfloat16, float16, got another one. Use %s.float().",
              name, name);
    return false;
}

// Sets `chosen` to whether `option` is `other`, and not the default.
inline bool expect_option(
    const char *name, const char *option, const char *usual, const char *other, int64_t *chosen, Fault &fault) {
    *chosen = strcmp(option, other) == 0;
    if (*chosen || strcmp(option, usual) == 0) return true;
    fault.add("%s: expected one of '%s', '%s', got '", name, usual, other);
    fault.add_text(option, 80);
    fault.add("'. Leave it out for the default, '%s'.", usual);
    return false;
}

// Where an array without numbers begins: a null pointer would say that it is not there.
inline const void *beginning(const Array &array) {
    static const int64_t nowhere = 0;
    return array.empty() ? &nowhere : array.data;
}

// Whether the numbers of sizes and counts fit the number of levels, for which both are given.
inline bool expect_levels(const Arguments &arguments, Fault &fault) {
    const long long levels = arguments.counts.count(), sizes = arguments.shapes.count();
    if (sizes == 2 * levels) return true;
    fault.add(
        "spatial_shapes: expected %lld ints, H and W of each level, got %lld. "
        "Give a size (H, W) and a count of points for each level.",
        2 * levels, sizes);
    return false;
}

inline bool lay_out_references(const Arguments &arguments, deform_attn_call &call, Fault &fault) {
    const Array &references = arguments.references;
    if (!expect_float("reference_points", references, fault)) return false;
    const bool with_levels = !(arguments.grouped && references.rank == 3);
    const int64_t rank = with_levels ? 4 : 3;
    const int64_t levels = with_levels && references.rank == 4 ? references.sizes[2] : 1;
    const int64_t size = references.rank == rank && references.sizes[rank - 1] == 2 ? 2 : 4;
    const int64_t expected_levels = levels == 1 ? 1 : call.L;
    const int64_t flat[] = {call.N, call.Q, expected_levels, size};
    const int64_t without[] = {call.N, call.Q, size};
    if (!expect_shape("reference_points", references, flat, 4, fault, with_levels ? nullptr : without, 3)) return false;
    call.reference_points = beginning(references);
    call.reference_dtype = references.dtype;
    call.reference_stride_n = references.strides[0];
    call.reference_stride_q = references.strides[1];
    call.reference_stride_l = levels == 1 ? 0 : references.strides[2];
    call.reference_size = size;
    call.reference_levels = levels;
    return true;
}

// Fills `call` but for threads, parallel_for and the arrays of results. False, with the fault, where arguments do not
// fit.
inline bool lay_out(Arguments &arguments, deform_attn_call &call, Fault &fault) {
    const Array &value = arguments.value, &points = arguments.points, &weights = arguments.weights;
    call = {};
    if (!expect_float("value", value, fault) || !expect_float(arguments.points_name(), points, fault) ||
        !expect_float(arguments.weights_name(), weights, fault) || !expect_levels(arguments, fault))
        return false;
    if (value.rank != 4) {
        fault.add("value: expected [N, S, M, D], got ");
        fault.add_shape(value.sizes, value.rank);
        fault.add(". Split the channels with value.unflatten(-1, (M, D)).");
        return false;
    }
    const bool grouped = arguments.grouped && points.rank == 6;
    const int64_t L = arguments.counts.count();
    call.N = value.sizes[0];
    call.S = value.sizes[1];
    call.M = value.sizes[2];
    call.D = value.sizes[3];
    call.L = L;
    call.Q = points.rank > 1 ? points.sizes[1] : 0;
    const int64_t P = grouped ? points.sizes[4] : 0;
    call.T = points.rank == 5 ? points.sizes[3] : L * P;
    const int64_t flat_points[] = {call.N, call.Q, call.M, call.T, 2};
    const int64_t grouped_points[] = {call.N, call.Q, call.M, L, P, 2};
    if (!expect_shape(arguments.points_name(), points, flat_points, 5, fault, grouped ? grouped_points : nullptr, 6))
        return false;
    if (!expect_shape(arguments.weights_name(), weights, flat_points, 4, fault,
                      grouped && !arguments.raw ? grouped_points : nullptr, 5))
        return false;
    if (!counts_add_up(arguments.counts, call.T, fault)) return false;
    if (!sizes_add_up(arguments.shapes, call.S, fault)) return false;
    if (!arguments.rows.resize(4 * L)) {
        fault.add("deform_attn: no memory for %lld levels", static_cast<long long>(L));
        return false;
    }
    write_levels(arguments.shapes, arguments.counts, arguments.rows.begin());
    call.levels = arguments.rows.begin();

    call.value_dtype = value.dtype;
    call.compute_dtype = value.dtype == DEFORM_ATTN_FLOAT64 ? DEFORM_ATTN_FLOAT64 : DEFORM_ATTN_FLOAT32;
    if (!expect_option("interpolation", arguments.interpolation, "bilinear", "nearest", &call.nearest, fault) ||
        !expect_option("padding_mode", arguments.padding_mode, "zeros", "border", &call.border, fault))
        return false;
    call.value = beginning(value);
    call.value_stride_n = value.strides[0];
    call.value_stride_s = value.strides[1];
    call.value_stride_m = value.strides[2];
    call.points = beginning(points);
    call.points_dtype = points.dtype;
    call.points_stride_n = points.strides[0];
    call.points_stride_q = points.strides[1];
    call.weights = beginning(weights);
    call.weights_dtype = weights.dtype;
    call.weights_stride_n = weights.strides[0];
    call.weights_stride_q = weights.strides[1];
    if (!arguments.raw) return true;

    if (!lay_out_references(arguments, call, fault)) return false;
    call.offset_scale = arguments.offset_scale;
    if (!arguments.mask.there()) return true;
    const int64_t mask_sizes[] = {call.N, call.S};
    if (!expect_shape("padding_mask", arguments.mask, mask_sizes, 2, fault)) return false;
    call.mask = static_cast<const uint8_t *>(beginning(arguments.mask));
    call.mask_stride_n = arguments.mask.strides[0];
    return true;
}

// Adds the gradient of the output to a call that is laid out. Its last axis is dense.
inline bool lay_out_grad_output(const Array &grad_output, deform_attn_call &call, Fault &fault) {
    const int64_t sizes[] = {call.N, call.Q, call.M * call.D};
    if (!expect_float("grad_output", grad_output, fault) || !expect_shape("grad_output", grad_output, sizes, 3, fault))
        return false;
    call.grad_output = beginning(grad_output);
    call.grad_output_stride_n = grad_output.strides[0];
    call.grad_output_stride_q = grad_output.strides[1];
    return true;
}

}  // namespace

#endif
