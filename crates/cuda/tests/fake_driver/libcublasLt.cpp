// A libcublasLt.so for machines without a GPU: what anyfleet calls of it, strict about its rules. Products are done by the
// stream of libcuda.cpp they are given to, when that does its work.
//
// Environment:
//   FAKE_CUBLASLT_VERSION  120804
//   FAKE_CUBLASLT_WAYS     how many ways of computing a product it knows: 1
#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

typedef unsigned long long u64;

namespace {

enum Status { OK = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { F32 = 0, F16 = 2, BF16 = 14, COMPUTE_F32 = 68 };

struct Product {
    const void *out, *x, *weight, *workspace;
    u64 workspace_bytes, rows, features, width;
    int f16;
};

template <class F>
F* of_driver(const char* name) {
    return reinterpret_cast<F*>(dlsym(dlopen("libcuda.so", RTLD_NOW), name));
}
int call(const char* name) { return of_driver<int(const char*)>("anyfleet_fake_call")(name); }
const void* context() { return of_driver<const void*()>("anyfleet_fake_context")(); }

int wrong(const char* format, ...) {
    char text[300];
    va_list rest;
    va_start(rest, format);
    vsnprintf(text, sizeof text, format, rest);
    va_end(rest);
    of_driver<void(const char*)>("anyfleet_fake_wrong")(text);
    return INVALID_VALUE;
}

u64 setting(const char* name, u64 otherwise) {
    const char* text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

enum Kind { Library, Description, Layout, Preference };
struct Object {
    Kind kind;
    const void* context;
    // Of a layout; of a description whether its first factor is transposed, of a preference the workspace.
    int type;
    u64 rows, columns;
    long long stride;
    u64 value;
};

std::mutex mutex;
std::set<Object*>& objects() {
    static auto* all = new std::set<Object*>;
    return *all;
}

int make(const char* name, Object** out, Object object) {
    int code = call(name);
    if (code) return code;
    std::lock_guard<std::mutex> lock(mutex);
    *out = new Object(object);
    objects().insert(*out);
    return OK;
}

bool known(Object* object, Kind kind) {
    std::lock_guard<std::mutex> lock(mutex);
    return objects().count(object) && object->kind == kind;
}

int destroy(const char* name, Object* object, Kind kind) {
    call(name);
    if (!known(object, kind)) return wrong("%s: it was never made, or it was destroyed", name);
    std::lock_guard<std::mutex> lock(mutex);
    // Objects are never freed, so that no handle is another one's later.
    objects().erase(object);
    return OK;
}

int set(const char* name, Object* object, Kind kind, int attribute, int which, const void* value, u64 bytes, u64 size) {
    int code = call(name);
    if (code) return code;
    if (!known(object, kind)) return wrong("%s: no such object", name);
    if (attribute != which || bytes != size) return wrong("%s: attribute %d of %llu bytes", name, attribute, bytes);
    memcpy(&object->value, value, bytes);
    return OK;
}

// Whether the product is one: columns first, the first factor transposed, results of 32 bits.
int check(const char* name, Object* library, Object* product, Object* a, Object* b, Object* c, Object* d) {
    if (!known(library, Library)) return wrong("%s: no such library", name);
    if (library->context != context()) return wrong("%s: another context is current", name);
    bool all = known(product, Description) && known(a, Layout) && known(b, Layout) && known(c, Layout) && known(d, Layout);
    if (!all) return wrong("%s: a description or a layout is gone", name);
    bool types = a->type == b->type && (a->type == F16 || a->type == BF16) && c->type == F32 && d->type == F32;
    bool sizes = a->rows == b->rows && d->rows == a->columns && d->columns == b->columns && c->rows == d->rows &&
                 c->columns == d->columns;
    for (Object* layout : {a, b, c, d}) sizes = sizes && layout->stride == (long long)layout->rows;
    if (!types || !sizes || product->value != 1) return wrong("%s: matrices do not fit each other", name);
    return OK;
}

}  // namespace

#define API(name, ...) extern "C" __attribute__((visibility("default"))) int name(__VA_ARGS__)

// For tests: objects that were not destroyed.
API(anyfleet_fake_objects, ) {
    std::lock_guard<std::mutex> lock(mutex);
    return int(objects().size());
}

extern "C" __attribute__((visibility("default"))) size_t cublasLtGetVersion() { return setting("FAKE_CUBLASLT_VERSION", 120804); }
extern "C" __attribute__((visibility("default"))) const char* cublasLtGetStatusString(int status) {
    return status == NOT_INITIALIZED ? "the library was not initialized" : status == EXECUTION_FAILED ? "the function failed to launch on the GPU" : "an error";
}

API(cublasLtCreate, Object** out) {
    if (!context()) return wrong("cublasLtCreate: no context is current"), NOT_INITIALIZED;
    return make(__func__, out, {Library, context()});
}
API(cublasLtDestroy, Object* library) { return destroy(__func__, library, Library); }

API(cublasLtMatmulDescCreate, Object** out, int compute, int scale) {
    if (compute != COMPUTE_F32 || scale != F32) return wrong("%s: computes in %d, scales %d", __func__, compute, scale);
    return make(__func__, out, {Description});
}
API(cublasLtMatmulDescSetAttribute, Object* o, int attribute, const void* value, size_t bytes) {
    return set(__func__, o, Description, attribute, 3, value, bytes, 4);
}
API(cublasLtMatmulDescDestroy, Object* o) { return destroy(__func__, o, Description); }

API(cublasLtMatrixLayoutCreate, Object** out, int type, u64 rows, u64 columns, long long stride) {
    if (!rows || !columns) return wrong("%s: %llu x %llu", __func__, rows, columns);
    return make(__func__, out, {Layout, nullptr, type, rows, columns, stride});
}
API(cublasLtMatrixLayoutDestroy, Object* o) { return destroy(__func__, o, Layout); }

API(cublasLtMatmulPreferenceCreate, Object** out) { return make(__func__, out, {Preference}); }
API(cublasLtMatmulPreferenceSetAttribute, Object* o, int attribute, const void* value, size_t bytes) {
    return set(__func__, o, Preference, attribute, 1, value, bytes, 8);
}
API(cublasLtMatmulPreferenceDestroy, Object* o) { return destroy(__func__, o, Preference); }

// cublasLtMatmulHeuristicResult_t.
struct Found {
    u64 algorithm[8], workspace;
    int state;
    float waves;
    int reserved[4];
};
const u64 MAGIC = 0x616c676f;

API(cublasLtMatmulAlgoGetHeuristic, Object* library, Object* product, Object* a, Object* b, Object* c, Object* d,
    Object* preference, int most, Found* found, int* count) {
    int code = call(__func__);
    if (code) return code;
    if (check(__func__, library, product, a, b, c, d)) return INVALID_VALUE;
    if (!known(preference, Preference)) return wrong("%s: no such preference", __func__);
    *count = setting("FAKE_CUBLASLT_WAYS", 1) ? 1 : 0;
    if (!*count) return NOT_SUPPORTED;
    // What the way needs is what it is promised, and it is for this product alone.
    *found = {{MAGIC, preference->value, a->columns, b->columns, a->rows}, preference->value, OK, 1.0f, {}};
    return most < 1 ? wrong("%s: no room for a way", __func__) : OK;
}

API(cublasLtMatmul, Object* library, Object* product, const float* alpha, const void* a, Object* a_layout, const void* b,
    Object* b_layout, const float* beta, const void* c, Object* c_layout, void* d, Object* d_layout, const u64* algorithm,
    void* workspace, size_t workspace_bytes, void* stream) {
    int code = call(__func__);
    if (code) return code;
    if (check(__func__, library, product, a_layout, b_layout, c_layout, d_layout)) return INVALID_VALUE;
    bool way = algorithm[0] == MAGIC && algorithm[2] == a_layout->columns && algorithm[3] == b_layout->columns &&
               algorithm[4] == a_layout->rows;
    if (!way) return wrong("%s: the way is another product's", __func__);
    if (workspace_bytes < algorithm[1]) return wrong("%s: too small a workspace", __func__);
    if (*alpha != 1.0f || *beta != 0.0f || c != d) return wrong("%s: adds something", __func__);
    for (const void* at : {a, b, (const void*)d, (const void*)workspace}) {
        if (u64(at) % 256) return wrong("%s: %p is not aligned as ways take for granted", __func__, at);
    }
    Product work = {d, b, a, workspace, workspace_bytes, b_layout->columns, a_layout->columns, a_layout->rows,
                    a_layout->type == F16};
    auto give = of_driver<int(void*, const Product*)>("anyfleet_fake_product");
    return give(stream, &work) ? EXECUTION_FAILED : OK;
}
