// A call as one row of numbers, for callers in this process that know no structs of C: deform_attn_run_row.
#include "deform_attn.h"
#include "layout.h"

namespace {

// Reads a row from its beginning to its end.
class Row {
public:
    explicit Row(const int64_t *at) : at_(at) {}

    int64_t next() { return *at_++; }

    // An array without gaps: its address, dtype, rank and sizes. Of one that is not there the rank is -1.
    Array array(Numbers &strides, Fault &fault) {
        Array array = no_array;
        array.data = reinterpret_cast<const void *>(static_cast<uintptr_t>(next()));
        array.dtype = next();
        array.rank = next();
        if (!array.there()) return array;
        array.sizes = at_;
        at_ += array.rank;
        if (!strides.resize(array.rank)) {
            fault.add("deform_attn: no memory for %lld axes", static_cast<long long>(array.rank));
            return no_array;
        }
        int64_t step = 1;
        for (int64_t axis = array.rank - 1; axis >= 0; --axis) {
            strides[axis] = step;
            step *= array.sizes[axis];
        }
        array.strides = strides.begin();
        return array;
    }

    bool list(Numbers &numbers, Fault &fault) {
        const int64_t count = next();
        if (!numbers.resize(count)) {
            fault.add("deform_attn: no memory for a list of %lld numbers", static_cast<long long>(count));
            return false;
        }
        for (int64_t i = 0; i < count; ++i) numbers[i] = next();
        return true;
    }

    void *address() { return reinterpret_cast<void *>(static_cast<uintptr_t>(next())); }

private:
    const int64_t *at_;
};

bool run(Row row, Fault &fault) {
    Arguments arguments;
    Numbers strides[6];
    deform_attn_call call;
    arguments.raw = row.next() != 0;
    arguments.grouped = false;
    const bool backward = row.next() != 0;
    const int64_t threads = row.next();
    void *const parallel_for = row.address();
    arguments.interpolation = row.next() ? "nearest" : "bilinear";
    arguments.padding_mode = row.next() ? "border" : "zeros";
    const int64_t scale = row.next();
    memcpy(&arguments.offset_scale, &scale, sizeof scale);
    if (!row.list(arguments.shapes, fault) || !row.list(arguments.counts, fault)) return false;
    Array *const arrays[] = {&arguments.value, &arguments.references, &arguments.points, &arguments.weights,
                             &arguments.mask};
    for (int i = 0; i < 5; ++i) *arrays[i] = row.array(strides[i], fault);
    if (!lay_out(arguments, call, fault)) return false;
    call.threads = threads;
    memcpy(&call.parallel_for, &parallel_for, sizeof parallel_for);
    int32_t status;
    if (backward) {
        if (!lay_out_grad_output(row.array(strides[5], fault), call, fault)) return false;
        call.grad_value = row.address();
        call.grad_reference_points = row.address();
        call.grad_points = row.address();
        call.grad_weights = row.address();
        status = deform_attn_backward(&call);
    } else {
        call.output = row.address();
        status = deform_attn_forward(&call);
    }
    if (status != DEFORM_ATTN_OK) fault.add("%s", status_text(status));
    return status == DEFORM_ATTN_OK;
}

}  // namespace

extern "C" int32_t deform_attn_run_row(const int64_t *row, char *text, int64_t size) {
    Fault fault;
    const bool done = run(Row(row), fault);
    if (!done) snprintf(text, static_cast<size_t>(size), "%s", fault.text());
    return done ? 0 : 1;
}
