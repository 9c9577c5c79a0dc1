// A call of a node by ONNX Runtime: its inputs taken over and judged, the kernels run on its threads, the output made.
#ifndef DEFORM_ATTN_ONNXRUNTIME_CALL_H
#define DEFORM_ATTN_ONNXRUNTIME_CALL_H

#include "layout.h"
#include "onnxruntime_operator.h"
#include "processors.h"

namespace {

// The call whose kernels this thread is about to run. They take no argument for it: their parallel_for has the form of
// torch's. It is read before anything else can run on the thread.
struct Running {
    const Api *api;
    const Context *context;
    int64_t threads;
};
thread_local Running running;

// A range in equal parts.
struct Parts {
    int64_t begin, end, count;
    void (*body)(int64_t begin, int64_t end, void *context);
    void *context;

    int64_t at(int64_t part) const {
        const int64_t each = (end - begin) / count, rest = (end - begin) % count;
        return begin + part * each + smaller(part, rest);
    }

    static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

    static void run(void *of, size_t i) {
        const Parts &parts = *static_cast<const Parts *>(of);
        const int64_t part = static_cast<int64_t>(i);
        parts.body(parts.at(part), parts.at(part + 1), parts.context);
    }
};

// deform_attn_parallel_for on the threads of the session that runs the node.
inline int32_t on_its_threads(
    int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t begin, int64_t end, void *context), void *context) {
    const Running on = running;
    const int64_t most = (end - begin) / (grain > 1 ? grain : 1);
    Parts parts = {begin, end, Parts::smaller(on.threads, most), body, context};
    if (parts.count < 2) {
        body(begin, end, context);
        return 0;
    }
    return on.api->done(on.api->run_parallel(on.context, &Parts::run, static_cast<size_t>(parts.count), 0, &parts)) ? 0 : 1;
}

class Call {
public:
    Call(const Node &node, Context *context)
        : node_(node), kind_(*node.op->kind), api_(node.op->api), context_(context) {}

    // Null, or what is in the way.
    Status run() {
        const bool done = take_all() && judge() && compute();
        if (done || failure_) return failure_;
        return status_of(api_, argument_code, fault_);
    }

private:
    // An input: its array, the type of its numbers, and its sizes and strides one after the other.
    struct Taken {
        Array array = no_array;
        int32_t type = any_type;
        Numbers numbers;
    };

    // Keeps the failure of a function of ONNX Runtime, if it is one.
    bool done(Status status) {
        failure_ = status;
        return !status;
    }

    bool take_all() {
        for (int64_t i = 0; i < kind_.inputs; ++i) {
            if (!take(i, taken_[kind_.input[i]])) return false;
        }
        return true;
    }

    bool take(int64_t i, Taken &taken) {
        const Value *value = nullptr;
        if (!done(api_.get_input(context_, static_cast<size_t>(i), &value))) return false;
        if (!value) {
            fault_.add("%s: expected %lld inputs, got none in place %lld. Give all of them.", kind_.name,
                       static_cast<long long>(kind_.inputs), static_cast<long long>(i));
            return false;
        }
        Shape *shape = nullptr;
        if (!done(api_.get_shape(value, &shape))) return false;
        const bool read = read_shape(shape, taken);
        api_.release_shape(shape);
        if (!read) return false;
        taken.array.dtype = dtype_of(taken.type, no_dtype);
        const bool numbers = taken.array.dtype != no_dtype || taken.type == bool_type || is_int(taken.type);
        void *data = nullptr;
        if (numbers && !done(api_.get_data(const_cast<Value *>(value), &data))) return false;
        taken.array.data = data;
        return true;
    }

    bool read_shape(const Shape *shape, Taken &taken) {
        size_t rank = 0;
        if (!done(api_.get_type(shape, &taken.type)) || !done(api_.get_rank(shape, &rank))) return false;
        const int64_t axes = static_cast<int64_t>(rank);
        if (!taken.numbers.resize(2 * axes)) return no_memory("axes", axes);
        int64_t *const sizes = taken.numbers.begin(), *const strides = sizes + axes;
        if (rank && !done(api_.get_sizes(shape, sizes, rank))) return false;
        taken.array.rank = axes;
        taken.array.sizes = sizes;
        taken.array.strides = strides;
        // The other sizes of a tensor without numbers may be anything, and cannot be multiplied.
        int64_t step = taken.array.empty() ? 0 : 1;
        for (int64_t axis = axes - 1; axis >= 0; --axis) {
            strides[axis] = step;
            step *= sizes[axis];
        }
        return true;
    }

    bool no_memory(const char *what, int64_t count) {
        fault_.add("deform_attn: no memory for %lld %s", static_cast<long long>(count), what);
        return false;
    }

    static bool is_int(int32_t type) { return type == int32_type || type == int64_type; }

    // Copies whole numbers of either type.
    bool read_ints(const Taken &taken, Numbers &numbers, int64_t count) {
        if (!numbers.resize(count)) return no_memory("numbers", count);
        for (int64_t i = 0; i < count; ++i) {
            numbers[i] = taken.type == int64_type ? static_cast<const int64_t *>(taken.array.data)[i]
                                                  : static_cast<const int32_t *>(taken.array.data)[i];
        }
        return true;
    }

    bool judge() {
        Arguments &arguments = arguments_;
        arguments.raw = kind_.raw;
        arguments.grouped = kind_.plugin;
        arguments.value = taken_[value_input].array;
        arguments.references = taken_[references_input].array;
        arguments.points = taken_[points_input].array;
        arguments.weights = taken_[weights_input].array;
        arguments.mask = taken_[mask_input].array;
        arguments.offset_scale = node_.offset_scale;
        arguments.interpolation = node_.interpolation;
        arguments.padding_mode = node_.padding_mode;
        if (!read_counts() || !read_sizes() || !judge_types()) return false;
        if (!lay_out(arguments, call_, fault_)) return false;
        if (kind_.plugin && !judge_starts()) return false;
        call_.threads = processors();
        call_.parallel_for = on_its_threads;
        call_.output = &nowhere_;
        return judge_numbers();
    }

    // P of each level.
    bool read_counts() {
        Numbers &counts = arguments_.counts;
        if (!kind_.plugin) {
            if (!counts.resize(node_.levels)) return no_memory("levels", node_.levels);
            if (node_.levels) memcpy(counts.begin(), node_.counts, static_cast<size_t>(node_.levels) * sizeof(int64_t));
            return true;
        }
        const Array &points = arguments_.points, &sizes = taken_[sizes_input].array;
        const int64_t levels = sizes.rank == 2 ? sizes.sizes[0] : 0;
        if (points.rank != 6 || points.sizes[3] != levels || points.sizes[4] > most_size) {
            fault_.add("sampling_locations: expected [N, Q, M, L, P, 2] with L = %lld, got ", static_cast<long long>(levels));
            fault_.add_shape(points.sizes, points.rank);
            fault_.add(". Compare it with value and spatial_shapes.");
            return false;
        }
        if (!counts.resize(levels)) return no_memory("levels", levels);
        for (int64_t l = 0; l < levels; ++l) counts[l] = points.sizes[4];
        return true;
    }

    bool read_sizes() {
        const Taken &sizes = taken_[sizes_input];
        const int64_t levels = arguments_.counts.count();
        const int64_t expected[] = {levels, 2};
        if (levels == 0) {
            fault_.add("spatial_shapes: expected at least one pair (H, W), got none. For one map write [[H, W]].");
            return false;
        }
        if (is_int(sizes.type) && is_shape(sizes.array, expected, 2))
            return read_ints(sizes, arguments_.shapes, 2 * levels);
        fault_.add("spatial_shapes: expected a tensor [L, 2] = ");
        fault_.add_shape(expected, 2);
        fault_.add(" of int64 or int32, got ");
        fault_.add_shape(sizes.array.sizes, sizes.array.rank);
        fault_.add("%s. Give a size (H, W) for each level.", is_int(sizes.type) ? "" : " of another type");
        return false;
    }

    // The place of each level's first pixel, which follows from the sizes.
    bool judge_starts() {
        const Taken &starts = taken_[starts_input];
        const int64_t levels = arguments_.counts.count();
        Numbers given;
        if (!is_int(starts.type) || !is_shape(starts.array, &levels, 1)) {
            fault_.add("level_start_index: expected a tensor [%lld] of int64 or int32, got ", static_cast<long long>(levels));
            fault_.add_shape(starts.array.sizes, starts.array.rank);
            fault_.add("%s. Give the place of each level's first pixel.", is_int(starts.type) ? "" : " of another type");
            return false;
        }
        if (!read_ints(starts, given, levels)) return false;
        for (int64_t l = 0; l < levels; ++l) {
            const long long expected = call_.levels[4 * l + 2], got = given[l];
            if (expected == got) continue;
            fault_.add(
                "level_start_index: expected level %lld to begin at pixel %lld, where the one before it ends, got %lld. "
                "Lay the levels out one after the other, without gaps.",
                static_cast<long long>(l), expected, got);
            return false;
        }
        return true;
    }

    bool judge_types() {
        const Taken &mask = taken_[mask_input];
        if (mask.array.there() && mask.type != bool_type) {
            fault_.add("padding_mask: expected a tensor of bool, got another type. Cast it; true marks padding.");
            return false;
        }
        if (arguments_.value.dtype == DEFORM_ATTN_FLOAT64) return true;
        const Input others[] = {references_input, points_input, weights_input};
        for (const Input input : others) {
            if (taken_[input].type != float64_type) continue;
            fault_.add("value: expected float64, as another input is, got another type. Cast one of them.");
            return false;
        }
        return true;
    }

    // What the layout does not look at: whether sizes can be multiplied, and where arrays begin.
    bool judge_numbers() {
        const int32_t status = deform_attn_check(&call_);
        if (status == DEFORM_ATTN_OK) return true;
        if (status == DEFORM_ATTN_MISALIGNED_POINTER) {
            fault_.add("deform_attn: expected inputs whose numbers begin at multiples of their size, got another address. "
                       "Align the data of the file, or of the tensors that are passed in.");
        } else {
            fault_.add("%s", status_text(status));
        }
        return false;
    }

    bool compute() {
        const int64_t by_head[] = {call_.N, call_.Q, call_.M, call_.D}, flat[] = {call_.N, call_.Q, call_.M * call_.D};
        Value *output = nullptr;
        if (!done(api_.get_output(context_, 0, kind_.heads ? by_head : flat, kind_.heads ? 4 : 3, &output))) return false;
        if (!done(api_.get_data(output, &call_.output))) return false;
        if (!call_.output) call_.output = &nowhere_;
        const Running before = running;
        running = {&api_, context_, call_.threads};
        const int32_t status = deform_attn_forward(&call_);
        running = before;
        if (status == DEFORM_ATTN_OK) return true;
        failure_ = api_.create_status(fail_code, status_text(status));
        return false;
    }

    const Node &node_;
    const Kind &kind_;
    const Api &api_;
    Context *context_;
    Taken taken_[mask_input + 1];
    Arguments arguments_;
    deform_attn_call call_;
    Fault fault_;
    Status failure_ = nullptr;
    int64_t nowhere_ = 0;  // where an output without numbers begins
};

}  // namespace

#endif
