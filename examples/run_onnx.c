/* Runs an ONNX file that has operators of deform-attn, in a process without Python.
 *
 * Usage: run_onnx LIBRARY MODEL OUTPUT INPUT...
 * INPUT is a file of float32 numbers, or of bytes 0 and 1 for a mask of type bool: one file for each input of the
 * model, whose sizes the model fixes. OUTPUT gets the numbers of all outputs, one after the other. */
#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>

static const OrtApi *ort;

static void check(OrtStatus *status) {
    if (!status) return;
    fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
    exit(1);
}

/* Reads ("rb"), writes ("wb") or appends ("ab") all numbers of a tensor. */
static void copy(OrtValue *tensor, const char *path, const char *mode) {
    OrtTensorTypeAndShapeInfo *shape;
    ONNXTensorElementDataType type;
    size_t count;
    void *numbers;
    check(ort->GetTensorTypeAndShape(tensor, &shape));
    check(ort->GetTensorShapeElementCount(shape, &count));
    check(ort->GetTensorElementType(shape, &type));
    if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && type != ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL) {
        fprintf(stderr, "%s: expected a tensor of type float32 or bool\n", path);
        exit(1);
    }
    check(ort->GetTensorMutableData(tensor, &numbers));
    size_t bytes = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL ? 1 : 4;
    FILE *file = fopen(path, mode);
    if (!file || (*mode == 'r' ? fread(numbers, bytes, count, file) : fwrite(numbers, bytes, count, file)) != count) {
        fprintf(stderr, "%s: expected %zu %s\n", path, count, bytes == 1 ? "bytes" : "float32 numbers");
        exit(1);
    }
    fclose(file);
}

int main(int count, char **arguments) {
    OrtEnv *env;
    OrtSessionOptions *options;
    OrtSession *session;
    OrtAllocator *allocator;
    OrtValue *inputs[16], *outputs[16] = {NULL};
    char *names[16], *output_names[16];
    size_t given = (size_t)count - 4, taken, returned;

    if (count < 5) return fprintf(stderr, "usage: run_onnx LIBRARY MODEL OUTPUT INPUT...\n"), 1;
    ort = OrtGetApiBase()->GetApi(17);
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "run_onnx", &env));
    check(ort->CreateSessionOptions(&options));
    check(ort->RegisterCustomOpsLibrary_V2(options, arguments[1])); /* the library of deform-attn */
    check(ort->CreateSession(env, arguments[2], options, &session));
    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    check(ort->SessionGetInputCount(session, &taken));
    check(ort->SessionGetOutputCount(session, &returned));
    if (given != taken || given > 16) return fprintf(stderr, "expected %zu inputs, got %zu\n", taken, given), 1;
    if (returned > 16) return fprintf(stderr, "expected at most 16 outputs, got %zu\n", returned), 1;
    for (size_t i = 0; i < given; ++i) {
        OrtTypeInfo *type;
        const OrtTensorTypeAndShapeInfo *shape;
        ONNXTensorElementDataType kind;
        size_t rank;
        int64_t sizes[8];
        check(ort->SessionGetInputName(session, i, allocator, &names[i]));
        check(ort->SessionGetInputTypeInfo(session, i, &type));
        check(ort->CastTypeInfoToTensorInfo(type, &shape));
        check(ort->GetTensorElementType(shape, &kind));
        check(ort->GetDimensionsCount(shape, &rank));
        check(ort->GetDimensions(shape, sizes, rank));
        check(ort->CreateTensorAsOrtValue(allocator, sizes, rank, kind, &inputs[i]));
        copy(inputs[i], arguments[4 + i], "rb");
    }
    for (size_t i = 0; i < returned; ++i) check(ort->SessionGetOutputName(session, i, allocator, &output_names[i]));
    check(ort->Run(session, NULL, (const char *const *)names, (const OrtValue *const *)inputs, given,
                   (const char *const *)output_names, returned, outputs));
    for (size_t i = 0; i < returned; ++i) copy(outputs[i], arguments[3], i ? "ab" : "wb");
    return 0;
}
