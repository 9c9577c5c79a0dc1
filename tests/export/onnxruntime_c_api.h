/* Stands in for ONNX Runtime's header of this name, which no package of Python carries: what examples/run_onnx.c uses.
 *
 * Declared by hand after the documented interface: the functions at their places in the table of version 17. */
#include <stddef.h>
#include <stdint.h>

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtSession OrtSession;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtAllocator OrtAllocator;
typedef struct OrtValue OrtValue;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;

enum { ORT_LOGGING_LEVEL_FATAL = 4 };
typedef enum ONNXTensorElementDataType {
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL = 9
} ONNXTensorElementDataType;

typedef struct {
    void *place_0[2];
    const char *(*GetErrorMessage)(const OrtStatus *status);
    OrtStatus *(*CreateEnv)(int level, const char *name, OrtEnv **made);
    void *place_4[3];
    OrtStatus *(*CreateSession)(const OrtEnv *env, const char *path, const OrtSessionOptions *options, OrtSession **made);
    void *place_8[1];
    OrtStatus *(*Run)(
        OrtSession *session, const OrtRunOptions *options, const char *const *input_names, const OrtValue *const *inputs,
        size_t input_count, const char *const *output_names, size_t output_count, OrtValue **outputs);
    OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **made);
    void *place_11[19];
    OrtStatus *(*SessionGetInputCount)(const OrtSession *session, size_t *count);
    OrtStatus *(*SessionGetOutputCount)(const OrtSession *session, size_t *count);
    void *place_32[1];
    OrtStatus *(*SessionGetInputTypeInfo)(const OrtSession *session, size_t i, OrtTypeInfo **type);
    void *place_34[2];
    OrtStatus *(*SessionGetInputName)(const OrtSession *session, size_t i, OrtAllocator *allocator, char **name);
    OrtStatus *(*SessionGetOutputName)(const OrtSession *session, size_t i, OrtAllocator *allocator, char **name);
    void *place_38[10];
    OrtStatus *(*CreateTensorAsOrtValue)(
        OrtAllocator *allocator, const int64_t *sizes, size_t rank, ONNXTensorElementDataType type, OrtValue **made);
    void *place_49[2];
    OrtStatus *(*GetTensorMutableData)(OrtValue *value, void **data);
    void *place_52[3];
    OrtStatus *(*CastTypeInfoToTensorInfo)(const OrtTypeInfo *type, const OrtTensorTypeAndShapeInfo **shape);
    void *place_56[4];
    OrtStatus *(*GetTensorElementType)(const OrtTensorTypeAndShapeInfo *shape, ONNXTensorElementDataType *type);
    OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *shape, size_t *rank);
    OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *shape, int64_t *sizes, size_t rank);
    void *place_63[1];
    OrtStatus *(*GetTensorShapeElementCount)(const OrtTensorTypeAndShapeInfo *shape, size_t *count);
    OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *value, OrtTensorTypeAndShapeInfo **shape);
    void *place_66[12];
    OrtStatus *(*GetAllocatorWithDefaultOptions)(OrtAllocator **allocator);
    void *place_79[149];
    OrtStatus *(*RegisterCustomOpsLibrary_V2)(OrtSessionOptions *options, const char *path);
} OrtApi;

typedef struct {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

const OrtApiBase *OrtGetApiBase(void);
