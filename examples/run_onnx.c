/* Runs an ONNX file that has operators of deform-attn, in a process without Python.
 *
 * Usage: run_onnx LIBRARY MODEL OUTPUT INPUT...
 * INPUT and OUTPUT are files of float32 numbers, one file for each input of the model, whose sizes the model fixes. */
#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>

static const OrtApi *ort;

static void check(OrtStatus *status) {
    if (!status) return;
    fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
    exit(1);
}

/* Reads or writes all numbers of a tensor. */
static void copy(OrtValue *tensor, const char *path, int is_input) {
    OrtTensorTypeAndShapeInfo *shape;
    size_t count;
    void *numbers;
    check(ort->GetTensorTypeAndShape(tensor, &shape));
    check(ort->GetTensorShapeElementCount(shape, &count));
    check(ort->GetTensorMutableData(tensor, &numbers));
    FILE *file = fopen(path, is_input ? "rb" : "wb");
    if (!file || (is_input ? fread(numbers, 4, count, file) : fwrite(numbers, 4, count, file)) != count) {
        fprintf(stderr, "%s: expected %zu float32 numbers\n", path, count);
        exit(1);
    }
    fclose(file);
}

int main(int count, char **arguments) {
    OrtEnv *env;
    OrtSessionOptions *options;
    OrtSession *session;
    OrtAllocator *allocator;
    OrtValue *inputs[16], *output = NULL;
    char *names[16], *output_name;
    size_t given = (size_t)count - 4, taken;

    if (count < 5) return fprintf(stderr, "usage: run_onnx LIBRARY MODEL OUTPUT INPUT...\n"), 1;
    ort = OrtGetApiBase()->GetApi(17);
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "run_onnx", &env));
    check(ort->CreateSessionOptions(&options));
    check(ort->RegisterCustomOpsLibrary_V2(options, arguments[1])); /* the library of deform-attn */
    check(ort->CreateSession(env, arguments[2], options, &session));
    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    check(ort->SessionGetInputCount(session, &taken));
    if (given != taken || given > 16) return fprintf(stderr, "expected %zu inputs, got %zu\n", taken, given), 1;
    for (size_t i = 0; i < given; ++i) {
        OrtTypeInfo *type;
        const OrtTensorTypeAndShapeInfo *shape;
        size_t rank;
        int64_t sizes[8];
        check(ort->SessionGetInputName(session, i, allocator, &names[i]));
        check(ort->SessionGetInputTypeInfo(session, i, &type));
        check(ort->CastTypeInfoToTensorInfo(type, &shape));
        check(ort->GetDimensionsCount(shape, &rank));
        check(ort->GetDimensions(shape, sizes, rank));
        check(ort->CreateTensorAsOrtValue(allocator, sizes, rank, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &inputs[i]));
        copy(inputs[i], arguments[4 + i], 1);
    }
    check(ort->SessionGetOutputName(session, 0, allocator, &output_name));
    check(ort->Run(session, NULL, (const char *const *)names, (const OrtValue *const *)inputs, given,
                   (const char *const *)&output_name, 1, &output));
    copy(output, arguments[3], 0);
    return 0;
}
