// An operator of the binding, and a node of it in a file: what it takes, and its attributes, read and judged once.
#ifndef DEFORM_ATTN_ONNXRUNTIME_OPERATOR_H
#define DEFORM_ATTN_ONNXRUNTIME_OPERATOR_H

#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "onnxruntime_functions.h"

namespace {

enum Input { value_input, sizes_input, starts_input, references_input, points_input, weights_input, mask_input };

// What the operators of one name have in common.
struct Kind {
    const char *name;
    bool raw;     // points and weights are raw offsets and logits, around references
    bool plugin;  // of another project: it takes starts, the points have an axis for the levels, attributes mean nothing
    bool heads;   // the heads have an axis of their own in the output
    int64_t inputs;
    Input input[6];

    int64_t place(Input wanted) const {
        for (int64_t i = 0; i < inputs; ++i) {
            if (input[i] == wanted) return i;
        }
        return -1;
    }
};

const Kind kinds[] = {
    {"DeformableAttention", true, false, false, 5,
     {value_input, sizes_input, references_input, points_input, weights_input}},
    // Apart, since older versions of ONNX Runtime crash where an input of an operator from elsewhere is left out.
    {"MaskedDeformableAttention", true, false, false, 6,
     {value_input, sizes_input, references_input, points_input, weights_input, mask_input}},
    {"MultiScaleDeformableAttention", false, false, false, 4, {value_input, sizes_input, points_input, weights_input}},
    {"MultiscaleDeformableAttnPlugin_TRT", false, true, true, 5,
     {value_input, sizes_input, starts_input, points_input, weights_input}},
    {"MMCVMultiScaleDeformableAttention", false, true, false, 5,
     {value_input, sizes_input, starts_input, points_input, weights_input}},
};
enum { attend_kind, masked_kind, sample_kind, tensorrt_kind, mmdeploy_kind };

// One of the operators of a name: that for values of one type.
struct Operator {
    CustomOp as_custom_op;  // the first, so that its address is that of the operator
    const Kind *kind;
    ElementType type;
    Api api;
};

inline const Operator &operator_of(const CustomOp *op) { return *reinterpret_cast<const Operator *>(op); }

inline Status status_of(const Api &api, int32_t code, const Fault &fault) {
    return api.create_status(code, fault.text());
}

// A node of a file. Nothing of it changes after it is made, so that any number of threads may run it.
struct Node {
    const Operator *op;
    const char *interpolation, *padding_mode;
    double offset_scale;
    int64_t levels;  // of a plugin: 0, its points say how many there are
    int64_t counts[];
};

// Reads the attributes of our own operators, all of which are required: a missing one and one of another type look alike.
class Attributes {
public:
    Attributes(const Api &api, const NodeInfo *info, Fault &fault) : api_(api), info_(info), fault_(fault) {}

    // One of two texts, as it stands in this library; null with the fault if it is another.
    const char *option(const char *name, const char *usual, const char *other) {
        char text[16] = {};
        size_t size = 0;
        if (!api_.done(api_.get_string(info_, name, nullptr, &size))) {
            missing(name, "a string");
            return nullptr;
        }
        if (size <= sizeof text && api_.done(api_.get_string(info_, name, text, &size))) {
            text[sizeof text - 1] = 0;
            if (strcmp(text, usual) == 0) return usual;
            if (strcmp(text, other) == 0) return other;
        }
        fault_.add("%s: expected one of '%s', '%s', got another text. Correct the node's attribute.", name, usual, other);
        return nullptr;
    }

    bool number(const char *name, double *number) {
        float single = 0;
        if (!api_.done(api_.get_float(info_, name, &single))) return missing(name, "a float");
        *number = single;
        if (__builtin_isfinite(single)) return true;
        fault_.add("%s: expected a finite number, got %g. The published models use 0.5.", name, *number);
        return false;
    }

    // An attribute of another type has no ints.
    bool count_ints(const char *name, size_t *count) {
        return (api_.done(api_.get_ints(info_, name, nullptr, count)) && *count) || missing(name, "a list of ints");
    }

    bool ints(const char *name, int64_t *numbers, size_t count) {
        return api_.done(api_.get_ints(info_, name, numbers, &count)) || missing(name, "a list of ints");
    }

private:
    bool missing(const char *name, const char *type) {
        fault_.add("%s: expected %s, got no such attribute. Add it to the node.", name, type);
        return false;
    }

    const Api &api_;
    const NodeInfo *info_;
    Fault &fault_;
};

inline Node *read_node(const Operator &op, const NodeInfo *info, Fault &fault) {
    Attributes attributes(op.api, info, fault);
    size_t levels = 0;
    if (!op.kind->plugin && !attributes.count_ints("num_points", &levels)) return nullptr;
    Node *node = static_cast<Node *>(malloc(sizeof(Node) + levels * sizeof(int64_t)));
    if (!node) {
        fault.add("deform_attn: no memory for %zu levels", levels);
        return nullptr;
    }
    *node = {&op, "bilinear", "zeros", 0, static_cast<int64_t>(levels)};
    if (op.kind->plugin) return node;
    node->interpolation = attributes.option("interpolation", "bilinear", "nearest");
    node->padding_mode = node->interpolation ? attributes.option("padding_mode", "zeros", "border") : nullptr;
    if (node->padding_mode && attributes.ints("num_points", node->counts, levels) &&
        (!op.kind->raw || attributes.number("offset_scale", &node->offset_scale)))
        return node;
    free(node);
    return nullptr;
}

}  // namespace

#endif
