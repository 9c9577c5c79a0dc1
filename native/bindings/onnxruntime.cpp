// The operators, registered with ONNX Runtime: which there are, under which names, for which types.
//
// They stay registered with a runtime for as long as it is in the process: sessions refer to them.
#include "deform_attn_onnxruntime.h"
#include "onnxruntime_call.h"
#include "onnxruntime_shapes.h"

namespace {

// A domain of ONNX has one kind of operator under its name, or more.
struct Row {
    const char *domain;
    int32_t kind;
    bool wide;  // also for float64 and bfloat16
};

const Row rows[] = {
    {"deform_attn", attend_kind, true},
    {"deform_attn", masked_kind, true},
    {"deform_attn", sample_kind, true},
    {"trt.plugins", tensorrt_kind, false},  // ours, and others'
    {"nvidia", tensorrt_kind, false},       // of NVIDIA TAO
    {"trt", tensorrt_kind, false},
    {"custom_ops", tensorrt_kind, false},
    {"mmdeploy", mmdeploy_kind, false},
    {"", tensorrt_kind, false},
};
constexpr int64_t row_count = sizeof rows / sizeof rows[0];
constexpr ElementType types[] = {float32_type, float16_type, float64_type, bfloat16_type};
constexpr int64_t all_types = 4, narrow_types = 2;

const char *name_of(const CustomOp *op) { return operator_of(op).kind->name; }
const char *provider_of(const CustomOp *) { return nullptr; }
size_t count_inputs(const CustomOp *op) { return static_cast<size_t>(operator_of(op).kind->inputs); }
size_t count_outputs(const CustomOp *) { return 1; }
int32_t type_of_output(const CustomOp *op, size_t) { return operator_of(op).type; }
int32_t zero(const CustomOp *, size_t) { return 0; }
int32_t one(const CustomOp *) { return 1; }
int32_t last_version(const CustomOp *) { return INT32_MAX; }
void destroy(void *node) { free(node); }

// The type of value tells the operators of a name apart. The others may be any, and are judged in each run.
int32_t type_of_input(const CustomOp *op, size_t i) {
    const Operator &of = operator_of(op);
    return of.kind->input[i] == value_input ? of.type : of.kind->input[i] == mask_input ? bool_type : any_type;
}

Status create(const CustomOp *op, const Table *, const NodeInfo *info, void **node) {
    Fault fault;
    *node = read_node(operator_of(op), info, fault);
    return *node ? nullptr : status_of(operator_of(op).api, argument_code, fault);
}

Status run(void *node, Context *context) { return Call(*static_cast<const Node *>(node), context).run(); }

constexpr CustomOp custom_op = {
    api_version, nullptr, name_of, provider_of, type_of_input, count_inputs, type_of_output, count_outputs, nullptr,
    destroy, zero, zero, zero, one, one, one, one, create, run, infer_shape, one, last_version};

// All that one runtime was given. A process may have several.
struct Registered {
    const Table *table;
    Registered *next;
    Domain *domains[row_count];
    int64_t domain_count;
    Operator operators[row_count * all_types];
};
Registered *all_registered = nullptr;
char lock = 0;

Status fill(const Api &api, Registered &to) {
    Operator *op = to.operators;
    for (int64_t i = 0; i < row_count; ++i) {
        const Row &row = rows[i];
        if (i == 0 || strcmp(row.domain, rows[i - 1].domain) != 0) {
            if (Status status = api.create_domain(row.domain, &to.domains[to.domain_count])) return status;
            ++to.domain_count;
        }
        for (int64_t type = 0; type < (row.wide ? all_types : narrow_types); ++type, ++op) {
            *op = {custom_op, &kinds[row.kind], types[type], api};
            if (Status status = api.add_op(to.domains[to.domain_count - 1], &op->as_custom_op)) return status;
        }
    }
    return nullptr;
}

// Sets `found` to what the runtime of this table has been given, which is made the first time.
Status registered_with(const Api &api, Registered **found) {
    for (*found = all_registered; *found; *found = (*found)->next) {
        if ((*found)->table == api.table()) return nullptr;
    }
    Registered *made = static_cast<Registered *>(calloc(1, sizeof(Registered)));
    if (!made) return api.create_status(fail_code, "deform_attn: no memory for the operators");
    made->table = api.table();
    if (Status status = fill(api, *made)) {
        for (int64_t i = 0; i < made->domain_count; ++i) api.release_domain(made->domains[i]);
        free(made);
        return status;
    }
    made->next = all_registered;
    *found = all_registered = made;
    return nullptr;
}

}  // namespace

extern "C" OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *onnxruntime) {
    const ApiBase &base = *reinterpret_cast<const ApiBase *>(onnxruntime);
    const Api api(base.table(api_version));
    if (!api.table()) {
        Fault fault;
        fault.add("deform_attn: expected ONNX Runtime 1.17 or later, got %s. Install a newer one.", base.version());
        return status_of(Api(base.table(first_api_version)), fail_code, fault);
    }
    Registered *registered = nullptr;
    while (__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE)) {}
    Status status = registered_with(api, &registered);
    __atomic_clear(&lock, __ATOMIC_RELEASE);
    for (int64_t i = 0; !status && i < registered->domain_count; ++i) {
        status = api.add_domain(options, registered->domains[i]);
    }
    return status;
}
