/* Streams speech through a model of one step (`twostage export MODEL step.onnx --stream`) with ONNX Runtime's C API.
 *
 *   cc -O2 -std=c11 -o stream_step scripts/stream_step.c -I INCLUDE -L LIB -l onnxruntime
 *   arecord -q -t raw -f FLOAT_LE -r 16000 -c 1 | ./stream_step step.onnx | aplay -q -t raw -f FLOAT_LE -r 16000 -c 1
 *
 * Raw float32 of the model's sample rate comes in, at the level that models expect (an active level of -26 dBFS) and
 * without an offset, and restored speech goes out, as long as what came in. The shipped causal model is
 * checkpoints/causal/step.onnx, which reads the weights beside it: take the folder.
 *
 * For a device: everything is allocated before the first hop. States are kept twice, and each hop reads one set and
 * writes the other, so nothing is copied and the model's outputs are put where the next hop takes them from.
 */
#include <onnxruntime_c_api.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define AUDIO "audio"
#define RESTORED "restored"
#define NEXT "next."
#define MOST_DIMENSIONS 8

static const OrtApi *api;

static void fail(const char *what) {
    fprintf(stderr, "stream_step: %s\n", what);
    exit(1);
}

static void check(OrtStatus *status) {
    if (status != NULL) fail(api->GetErrorMessage(status));
}

static void *allocated(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (memory == NULL) fail("out of memory");
    return memory;
}

/* A tensor of zeros, whose numbers lie in *data: what goes in and comes out of the model. */
static OrtValue *tensor(const OrtMemoryInfo *where, const int64_t *shape, size_t rank, float **data, size_t *count) {
    *count = 1;
    for (size_t i = 0; i < rank; i++) *count *= (size_t)shape[i];
    *data = allocated(*count, sizeof(float));
    OrtValue *value = NULL;
    check(api->CreateTensorWithDataAsOrtValue(where, *data, *count * sizeof(float), shape, rank,
                                              ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
    return value;
}

typedef struct {
    OrtSession *session;
    size_t states;          /* tensors that are carried from hop to hop */
    const char **inputs;    /* audio, and the states */
    const char **outputs;   /* restored, and the next states */
    OrtValue **sets[2];     /* the values of either set: [0] is audio or restored, then the states */
    OrtValue *audio, *restored;
    float *samples_in, *samples_out;
    size_t hop;             /* samples that go in and come out at once */
    size_t delay;           /* samples by which what comes out is late */
    size_t channels;        /* 1, or 2: bone and air, one after the other in samples_in */
} Model;

static size_t metadata_number(OrtSession *session, OrtAllocator *allocator, const char *name) {
    OrtModelMetadata *metadata = NULL;
    char *text = NULL;
    check(api->SessionGetModelMetadata(session, &metadata));
    check(api->ModelMetadataLookupCustomMetadataMap(metadata, allocator, name, &text));
    if (text == NULL) fail("not a model of twostage: its file does not say what it is");
    size_t number = strtoul(text, NULL, 10);
    check(api->AllocatorFree(allocator, text));
    api->ReleaseModelMetadata(metadata);
    return number;
}

static size_t input_shape(OrtSession *session, size_t place, int64_t *shape) {
    OrtTypeInfo *type = NULL;
    const OrtTensorTypeAndShapeInfo *info = NULL;
    size_t rank = 0;
    check(api->SessionGetInputTypeInfo(session, place, &type));
    check(api->CastTypeInfoToTensorInfo(type, &info));
    check(api->GetDimensionsCount(info, &rank));
    if (rank > MOST_DIMENSIONS) fail("a state has too many dimensions");
    check(api->GetDimensions(info, shape, rank));
    for (size_t i = 0; i < rank; i++)
        if (shape[i] < 1) fail("not a model of one step: export it with --stream");
    api->ReleaseTypeInfo(type);
    return rank;
}

static Model opened(const char *path) {
    Model model = {0};
    OrtEnv *env = NULL;
    OrtSessionOptions *options = NULL;
    OrtAllocator *allocator = NULL;
    OrtMemoryInfo *where = NULL;
    size_t count = 0;
    check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "stream_step", &env));
    check(api->CreateSessionOptions(&options));
    check(api->SetIntraOpNumThreads(options, 1)); /* a hop is too short to be shared out */
    check(api->CreateSession(env, path, options, &model.session));
    check(api->GetAllocatorWithDefaultOptions(&allocator));
    check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &where));
    check(api->SessionGetInputCount(model.session, &count));
    model.states = count - 1;
    model.inputs = allocated(count, sizeof(char *));
    model.outputs = allocated(count, sizeof(char *));
    model.sets[0] = allocated(count, sizeof(OrtValue *));
    model.sets[1] = allocated(count, sizeof(OrtValue *));
    for (size_t i = 0; i < count; i++) {
        int64_t shape[MOST_DIMENSIONS];
        size_t rank = input_shape(model.session, i, shape), size = 0;
        char *name = NULL;
        float *data = NULL;
        check(api->SessionGetInputName(model.session, i, allocator, &name));
        model.inputs[i] = name;
        if (i == 0) {
            if (strcmp(name, AUDIO) != 0 || rank != 3) fail("not a model of twostage: its first input is not audio");
            const int64_t one[3] = {1, 1, shape[2]};
            model.channels = (size_t)shape[1];
            model.outputs[0] = RESTORED;
            model.audio = tensor(where, shape, rank, &model.samples_in, &size);
            model.restored = tensor(where, one, rank, &model.samples_out, &model.hop);
            continue;
        }
        char *next = allocated(strlen(NEXT) + strlen(name) + 1, 1);
        strcat(strcpy(next, NEXT), name);
        model.outputs[i] = next;
        model.sets[0][i] = tensor(where, shape, rank, &data, &size);
        model.sets[1][i] = tensor(where, shape, rank, &data, &size);
    }
    model.delay = metadata_number(model.session, allocator, "delay");
    api->ReleaseMemoryInfo(where);
    api->ReleaseSessionOptions(options);
    return model;
}

/* The next hop: samples_in -> samples_out; number counts from 0. */
static void step(Model *model, size_t number) {
    OrtValue **before = model->sets[number % 2], **after = model->sets[(number + 1) % 2];
    before[0] = model->audio;
    after[0] = model->restored;
    check(api->Run(model->session, NULL, model->inputs, (const OrtValue *const *)before, model->states + 1,
                   model->outputs, model->states + 1, after));
}

static double seconds(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(int count, char **words) {
    if (count != 2) fail("usage: stream_step step.onnx < speech.f32 > restored.f32");
    api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (api == NULL) fail("this ONNX Runtime is older than the headers that this program was made with");
    Model model = opened(words[1]);
    if (model.channels != 1) fail("this program is for models of one microphone");

    double total = 0, worst = 0;
    size_t hops = 0, heard = 0, dropped = 0, written = 0, got;
    do {
        got = fread(model.samples_in, sizeof(float), model.hop, stdin);
        heard += got;
        /* after the end, silence, until what was heard last has come out */
        memset(model.samples_in + got, 0, (model.hop - got) * sizeof(float));
        double began = seconds();
        step(&model, hops++);
        double took = seconds() - began;
        total += took;
        if (took > worst) worst = took;
        /* the first samples that come out are of before the speech */
        size_t early = model.delay - dropped < model.hop ? model.delay - dropped : model.hop;
        size_t ready = model.hop - early, owed = heard - written;
        size_t out = ready < owed ? ready : owed;
        if (fwrite(model.samples_out + early, sizeof(float), out, stdout) != out) fail("the output cannot be written");
        if (fflush(stdout) != 0) fail("the output cannot be written");
        dropped += early;
        written += out;
    } while (got == model.hop || written < heard);
    fprintf(stderr, "%zu hops of %zu samples, %zu samples late: %.2f ms each, %.2f at worst\n", hops, model.hop,
            model.delay, 1e3 * total / (double)hops, 1e3 * worst);
    return 0;
}
