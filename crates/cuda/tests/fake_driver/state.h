// What the fake driver keeps: contexts, memory, and work that waits. libcuda.cpp has the functions.
#pragma once
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

typedef unsigned int u32;
typedef unsigned long long u64;

namespace {

// What the driver gives back, as cuda.h numbers it.
enum Code {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ECC_UNCORRECTABLE = 214,
    NVLINK_UNCORRECTABLE = 220,
    ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_DESTROYED = 709,
    LAUNCH_TIMEOUT = 702,
    LAUNCH_FAILED = 719,
    UNKNOWN = 999,
};

struct Text {
    int code;
    const char *name, *text;
};
const Text TEXTS[] = {
    {OK, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {ECC_UNCORRECTABLE, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {NVLINK_UNCORRECTABLE, "CUDA_ERROR_NVLINK_UNCORRECTABLE", "uncorrectable NVLink error detected during the execution"},
    {LAUNCH_TIMEOUT, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const u64 PAGE = 4096;
// Addresses and sizes of device memory are multiples of it.
const u64 GRAIN = 256;
// Pages of device memory, and the least allocation that has some of its own.
const u64 DEVICE_PAGE = 2 << 20, OWN_PAGES = 1 << 20;
// Shared memory of a block: what every kernel may have, and what there is.
const u32 SHARED = 48 << 10, MOST_SHARED = 227 << 10;
const u32 MOST_THREADS = 1024, MOST_BLOCKS = 65535;

u64 rounded(u64 n, u64 to) { return (n + to - 1) / to * to; }

// Bytes of the device that an allocation takes: large ones have pages of their own.
u64 taken(u64 bytes) { return rounded(bytes, bytes >= OWN_PAGES ? DEVICE_PAGE : GRAIN); }

u64 setting(const char* name, u64 otherwise) {
    const char* text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

struct Context;

// Bytes of the device or page-locked ones of the host.
struct Memory {
    Context* context;
    char* at;
    u64 bytes;
    void* mapping;
    u64 mapped;
};

struct Module {
    Context* context;
    std::string name;
    // Empty where the image has none.
    std::string source;
};

struct Function {
    Module* module;
    std::string name;
    void (*thread)(const void*);
    u32 params, threads;
    // Shared memory that it was granted.
    u32 shared = SHARED;
};

struct Launch {
    Function* function;
    u32 grid[3], block[3], shared;
    // So that the structure is aligned, whatever is in it.
    struct alignas(64) Line {
        char bytes[64];
    };
    std::vector<Line> params;
};

// A product that libcublasLt.cpp asked for, in the words of crates/cuda/src/driver/mod.rs; its numbers are of 16 bits.
struct Product {
    char *out, *x, *weight, *workspace;
    u64 workspace_bytes, rows, features, width;
    int f16;
};

// Devices that libnccl.cpp made a group of. What each rank brings to its gathers is in its stream.
struct Group {
    u64 ranks;
    bool stopped = false;
    // Gathers that each rank has asked for.
    std::vector<u64> turns;
};

struct Work {
    enum Kind { ToDevice, ToHost, Within, Record, Kernel, Multiply, Gather } kind;
    u64 number = 0;
    char* to = nullptr;
    const char* from = nullptr;
    u64 bytes = 0;
    Launch launch = {};
    Product product = {};
    // Of a gather of `bytes` bytes of each rank: which, whose, and the how manieth of it.
    Group* group = nullptr;
    u64 rank = 0, turn = 0;
};

struct Stream {
    Context* context;
    std::deque<Work> waiting;
    u64 given = 0;
};

struct Event {
    Context* context;
    // Of its last record.
    Stream* stream = nullptr;
    u64 number = 0;
};

struct Graph;
struct Node {
    Graph* graph;
    Launch launch;
    std::vector<Node*> after;
};
struct Graph {
    Context* context;
    std::vector<Node*> nodes;
};
struct Exec {
    Context* context;
    std::vector<Launch> launches;
    bool uploaded = false;
};

struct Context {
    int device;
    int retained = 0;
    bool alive = true;
    // The failure that the device does not come back from.
    int broken = OK;
};

struct Failure {
    std::string what;
    u64 in;
    int code;
    bool sticky;
};

// Objects are never freed, so that no handle is another object's later.
struct State {
    std::mutex mutex;
    bool initialized = false;
    std::set<Context*> contexts;
    std::map<int, Context*> primary;
    std::map<char*, Memory> device, host;
    std::set<Stream*> streams;
    std::set<Event*> events;
    std::set<Module*> modules;
    std::set<Function*> functions;
    std::set<Graph*> graphs;
    std::set<Exec*> execs;
    std::vector<std::string> wrong, leaks;
    std::map<std::string, u64> calls;
    std::vector<Failure> failures;
};

State& state() {
    static State* state = new State;
    return *state;
}
thread_local Context* current = nullptr;

std::string format(const char* format, va_list rest) {
    char text[600];
    vsnprintf(text, sizeof text, format, rest);
    return text;
}

void note(const char* text, ...) {
    va_list rest;
    va_start(rest, text);
    state().wrong.push_back(format(text, rest));
    va_end(rest);
}

void fail_later(const std::string& rule) {
    std::stringstream parts(rule);
    std::string what, in, part;
    getline(parts, what, ':');
    getline(parts, in, ':');
    Failure failure = {what, in.empty() ? 1 : strtoull(in.c_str(), nullptr, 10), LAUNCH_FAILED, false};
    while (getline(parts, part, ':')) {
        if (part == "sticky") {
            failure.sticky = true;
        } else {
            failure.code = atoi(part.c_str());
        }
    }
    state().failures.push_back(failure);
}

// Counts `what`, and gives the failure that it was chosen for.
Failure due(const std::string& what) {
    state().calls[what]++;
    for (Failure& failure : state().failures) {
        if (failure.what == what && failure.in && --failure.in == 0) return failure;
    }
    return {what, 0, OK, false};
}

// A call of the driver: `code` is what it gives where it cannot do what it is for.
struct Call {
    enum Needs { Nothing, Driver, CurrentContext };

    const char* name;
    std::lock_guard<std::mutex> lock;
    int code = OK;

    Call(const char* name, Needs needs = CurrentContext) : name(name), lock(state().mutex) {
        Failure failure = due(name);
        if (needs != Nothing && !state().initialized) {
            code = wrong(NOT_INITIALIZED, "called before cuInit");
        } else if (needs == CurrentContext && !current) {
            code = wrong(INVALID_CONTEXT, "no context is current on this thread");
        } else if (needs == CurrentContext && !current->alive) {
            code = wrong(CONTEXT_IS_DESTROYED, "the context that is current on this thread was released");
        } else if (failure.code) {
            code = failure.code;
            if (failure.sticky && current) current->broken = code;
        } else if (needs == CurrentContext) {
            code = current->broken;
        }
    }

    int wrong(int code, const char* text, ...) const {
        va_list rest;
        va_start(rest, text);
        note("%s: %s", name, format(text, rest).c_str());
        va_end(rest);
        return code;
    }

    // What makes room on a device may wait for all that its peers have begun. A gather that is under way may in turn wait
    // for a rank that cannot ask for it before this is through.
    void waits_for_all() const {
        for (Stream* stream : state().streams) {
            for (const Work& work : stream->waiting) {
                if (work.kind != Work::Gather || work.group->stopped || stream->context->broken) continue;
                return (void)wrong(OK, "it may wait for a gather that is under way");
            }
        }
    }

    // Whether it is a handle of the current context.
    template <class T>
    bool known(const std::set<T*>& all, T* handle, const char* what) {
        if (!all.count(handle)) {
            code = wrong(INVALID_HANDLE, "no such %s: it was never made, or it was destroyed", what);
        } else if (handle->context != current) {
            code = wrong(INVALID_HANDLE, "the %s is another context's", what);
        } else {
            return true;
        }
        return false;
    }
};

// The memory in which these bytes lie.
Memory* holder(std::map<char*, Memory>& all, const char* at, u64 bytes) {
    auto next = all.upper_bound(const_cast<char*>(at));
    if (next == all.begin()) return nullptr;
    Memory& memory = std::prev(next)->second;
    u64 offset = u64(at - memory.at);
    return offset <= memory.bytes && bytes <= memory.bytes - offset ? &memory : nullptr;
}

// The memory begins at a multiple of `align`, and behind it are fewer than `align` bytes that may be touched.
bool map_memory(std::map<char*, Memory>& all, u64 bytes, u64 align, int fill, char** out) {
    u64 room = rounded(rounded(bytes, align), PAGE), mapped = room + PAGE;
    void* mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return false;
    mprotect(static_cast<char*>(mapping) + room, PAGE, PROT_NONE);
    char* at = static_cast<char*>(mapping) + room - rounded(bytes, align);
    memset(at, fill, bytes);
    all[at] = {current, at, bytes, mapping, mapped};
    *out = at;
    return true;
}

void unmap(std::map<char*, Memory>& all, std::map<char*, Memory>::iterator memory) {
    munmap(memory->second.mapping, memory->second.mapped);
    all.erase(memory);
}

u64 used(int device) {
    u64 bytes = 0;
    for (auto& entry : state().device) {
        if (entry.second.context->device == device) bytes += taken(entry.second.bytes);
    }
    return bytes;
}

typedef int (*Run)(const char*, void (*)(const void*), const void*, const u32*, const u32*, u32, u32, u32, u64, char*, u64);

// A symbol of the kernels.
void* kernel_symbol(const std::string& name) {
    static void* library = [] {
        const char* path = getenv("FAKE_CUDA_KERNELS");
        void* library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
        if (!library) note("FAKE_CUDA_KERNELS: %s", path ? dlerror() : "not set");
        return library;
    }();
    return library ? dlsym(library, name.c_str()) : nullptr;
}

int run(Launch& launch) {
    static Run run = reinterpret_cast<Run>(kernel_symbol("anyfleet_launch"));
    const char* name = launch.function->name.c_str();
    if (!run) return note("kernels lack anyfleet_launch"), UNKNOWN;
    if (!state().modules.count(launch.function->module)) {
        return note("%s runs after its module was unloaded", name), ILLEGAL_ADDRESS;
    }
    char error[512] = "";
    u64 blocks = u64(launch.grid[0]) * launch.grid[1] * launch.grid[2], most = 1u << 30;
    for (u64 first = 0; first < blocks; first += most) {
        u32 count = u32(std::min(most, blocks - first));
        if (run(name, launch.function->thread, launch.params.data(), launch.grid, launch.block, launch.shared, u32(first),
                count, setting("ANYFLEET_SEED", 1), error, sizeof error)) {
            return note("%s", error), LAUNCH_FAILED;
        }
    }
    return OK;
}

int copy(const Work& work) {
    State& s = state();
    bool from_host = work.kind == Work::ToDevice, to_host = work.kind == Work::ToHost;
    if (!holder(from_host ? s.host : s.device, work.from, work.bytes)) {
        return note("a copy's source was freed before it was made"), ILLEGAL_ADDRESS;
    }
    if (!holder(to_host ? s.host : s.device, work.to, work.bytes)) {
        return note("a copy's target was freed before it was made"), ILLEGAL_ADDRESS;
    }
    memmove(work.to, work.from, work.bytes);
    return OK;
}

// A number of 16 bits: f16 is put together from its parts, and its infinities and NaNs are none here.
float widened(u32 bits, bool f16) {
    float value;
    if (f16) {
        u32 exponent = bits >> 10 & 31, mantissa = bits & 1023;
        value = exponent ? ldexpf(float(mantissa | 1024), int(exponent) - 25) : ldexpf(float(mantissa), -24);
        return bits >> 15 ? -value : value;
    }
    bits <<= 16;
    memcpy(&value, &bits, 4);
    return value;
}

int multiply(const Product& p) {
    auto& device = state().device;
    for (auto [at, bytes] : {std::pair<char*, u64>{p.out, 4 * p.rows * p.features}, {p.x, 2 * p.rows * p.width},
                             {p.weight, 2 * p.features * p.width}, {p.workspace, p.workspace_bytes}}) {
        if (!holder(device, at, bytes)) return note("a product's memory was freed before it was made"), ILLEGAL_ADDRESS;
    }
    // What a library writes there.
    memset(p.workspace, 0xff, p.workspace_bytes);
    auto* out = reinterpret_cast<float*>(p.out);
    auto* x = reinterpret_cast<const uint16_t*>(p.x);
    auto* weight = reinterpret_cast<const uint16_t*>(p.weight);
    std::vector<float> row(p.width);
    for (u64 r = 0; r < p.rows; r++) {
        for (u64 k = 0; k < p.width; k++) row[k] = widened(x[r * p.width + k], p.f16);
        for (u64 f = 0; f < p.features; f++) {
            float sum = 0;
            for (u64 k = 0; k < p.width; k++) sum += row[k] * widened(weight[f * p.width + k], p.f16);
            out[r * p.features + f] = sum;
        }
    }
    return OK;
}

int finish(Stream& stream, u64 number);

// Does the gather that is next in a stream, for all ranks at once, and all that is before it in theirs; waits for those who
// have not asked yet or whose device has failed, as a device would. It is done, too, where another rank does it, or the group
// is stopped.
void gather(Stream& stream) {
    const Work own = stream.waiting.front();
    const u64 ranks = own.group->ranks, WAITS = 10000;
    std::vector<std::pair<Stream*, Work>> all;
    for (u64 waits = 0;; waits++) {
        if (stream.waiting.empty() || stream.waiting.front().number != own.number) return;
        if (own.group->stopped) return stream.waiting.pop_front();
        all.assign(ranks, {nullptr, {}});
        u64 found = 0;
        for (Stream* other : state().streams) {
            for (const Work& work : other->waiting) {
                if (work.kind != Work::Gather || work.group != own.group || work.turn != own.turn) continue;
                all[work.rank] = {other, work};
                found++;
            }
        }
        bool come = found == ranks;
        for (auto& [other, work] : all) come = come && !finish(*other, work.number - 1);
        // Others went on while that waited.
        if (stream.waiting.empty() || stream.waiting.front().number != own.number || stream.context->broken) return;
        if (come) break;
        if (waits == WAITS) {
            note("a gather waits for ranks that do not come");
            stream.context->broken = LAUNCH_FAILED;
            return;
        }
        state().mutex.unlock();
        usleep(1000);
        state().mutex.lock();
    }
    for (auto& [other, work] : all) {
        if (!holder(state().device, work.from, work.bytes) || !holder(state().device, work.to, ranks * work.bytes)) {
            note("a gather's memory was freed before it was made");
        } else {
            for (auto& part : all) memmove(work.to + part.second.rank * work.bytes, part.second.from, work.bytes);
        }
    }
    due("gather");
    for (auto& entry : all) entry.first->waiting.pop_front();
}

// Does what waits in a stream up to the number.
int finish(Stream& stream, u64 number) {
    Context& context = *stream.context;
    while (!stream.waiting.empty() && stream.waiting.front().number <= number) {
        if (stream.waiting.front().kind == Work::Gather && !context.broken) {
            gather(stream);
            continue;
        }
        Work work = std::move(stream.waiting.front());
        stream.waiting.pop_front();
        if (context.broken || work.kind == Work::Record) continue;
        bool kernel = work.kind == Work::Kernel, product = work.kind == Work::Multiply;
        int chosen = due(kernel ? "kernel" : product ? "product" : "copy").code;
        int here = kernel ? due("kernel@" + std::to_string(context.device)).code : OK;
        chosen = chosen ? chosen : here;
        context.broken = chosen ? chosen : kernel ? run(work.launch) : product ? multiply(work.product) : copy(work);
    }
    return context.broken;
}

int finish_all(Context* context) {
    for (Stream* stream : state().streams) {
        if (stream->context == context) finish(*stream, ~0ull);
    }
    return context->broken;
}

void give(Stream& stream, Work work) {
    work.number = ++stream.given;
    stream.waiting.push_back(std::move(work));
}

// Copies between the host and the device. Host memory that is not page-locked is read or written before the call is over.
int copy_async(Call& call, Work work, Stream* stream, bool from_host, bool to_host) {
    State& s = state();
    if (call.code || !call.known(s.streams, stream, "stream")) return call.code;
    if (!from_host && !holder(s.device, work.from, work.bytes)) {
        return call.wrong(INVALID_VALUE, "the %llu bytes it copies from are not all of one allocation", work.bytes);
    }
    if (!to_host && !holder(s.device, work.to, work.bytes)) {
        return call.wrong(INVALID_VALUE, "the %llu bytes it copies to are not all of one allocation", work.bytes);
    }
    const char* host = from_host ? work.from : work.to;
    if ((from_host || to_host) && !holder(s.host, host, work.bytes)) {
        if (int code = finish(*stream, ~0ull)) return code;
        memmove(work.to, work.from, work.bytes);
        return OK;
    }
    give(*stream, std::move(work));
    return OK;
}

// A launch that keeps the rules, with a copy of its parameters.
bool checked(Call& call, Function* function, const u32* grid, const u32* block, u32 shared, void** params, void** extra,
             Launch& launch) {
    if (!state().functions.count(function) || !state().modules.count(function->module)) {
        call.code = call.wrong(INVALID_HANDLE, "no such function, or its module was unloaded");
        return false;
    }
    const char* name = function->name.c_str();
    u64 threads = u64(block[0]) * block[1] * block[2];
    if (function->module->context != current) {
        call.code = call.wrong(INVALID_HANDLE, "%s is another context's", name);
    } else if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 0x7fffffffu || grid[1] > MOST_BLOCKS || grid[2] > MOST_BLOCKS) {
        call.code = call.wrong(INVALID_VALUE, "%s: a grid of %u x %u x %u blocks", name, grid[0], grid[1], grid[2]);
    } else if (!threads || block[0] > MOST_THREADS || block[1] > MOST_THREADS || block[2] > 64 || threads > MOST_THREADS) {
        call.code = call.wrong(INVALID_VALUE, "%s: a block of %u x %u x %u threads", name, block[0], block[1], block[2]);
    } else if (threads > function->threads) {
        call.code = call.wrong(INVALID_VALUE, "%s: %llu threads, and its bound is %u", name, threads, function->threads);
    } else if (shared > function->shared) {
        call.code = call.wrong(INVALID_VALUE, "%s: %u bytes of shared memory, and it was granted %u", name, shared,
                               function->shared);
    } else if (!params || !params[0] || extra) {
        call.code = call.wrong(INVALID_VALUE, "%s: parameters are one pointer to one structure", name);
    } else {
        launch = {function, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared, {}};
        launch.params.resize(rounded(function->params, sizeof(Launch::Line)) / sizeof(Launch::Line));
        memcpy(launch.params.data(), params[0], function->params);
        return true;
    }
    return false;
}

template <class T>
u64 forget(std::set<T*>& all, Context* context) {
    u64 count = 0;
    for (auto it = all.begin(); it != all.end();) {
        bool own = (*it)->context == context;
        count += own;
        it = own ? all.erase(it) : std::next(it);
    }
    return count;
}
u64 forget(std::map<char*, Memory>& all, Context* context) {
    u64 count = 0;
    for (auto it = all.begin(); it != all.end();) {
        auto next = std::next(it);
        if (it->second.context == context) unmap(all, it), count++;
        it = next;
    }
    return count;
}

template <class T>
u64 has(const std::set<T*>& all, Context* context) {
    return u64(std::any_of(all.begin(), all.end(), [&](T* thing) { return thing->context == context; }));
}
u64 has(const std::map<char*, Memory>& all, Context* context) {
    return u64(std::any_of(all.begin(), all.end(), [&](auto& entry) { return entry.second.context == context; }));
}

// Kinds of things that are in a context.
u64 things(Context* context) {
    State& s = state();
    return has(s.streams, context) + has(s.events, context) + has(s.execs, context) + has(s.graphs, context) +
           has(s.modules, context) + has(s.device, context) + has(s.host, context);
}

void leaked(u64 count, const char* what) {
    if (count) state().leaks.push_back(std::to_string(count) + " " + what);
}

void destroy(Context* context) {
    State& s = state();
    context->alive = false;
    leaked(forget(s.streams, context), "streams");
    leaked(forget(s.events, context), "events");
    leaked(forget(s.execs, context), "instances of graphs");
    leaked(forget(s.graphs, context), "graphs");
    leaked(forget(s.modules, context), "modules");
    leaked(forget(s.device, context), "allocations of the device");
    leaked(forget(s.host, context), "page-locked allocations of the host");
}

bool identifier(char c) { return isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// Whether the text has the name as a word.
bool has_word(const std::string& text, const std::string& name) {
    for (size_t at = text.find(name); at != std::string::npos; at = text.find(name, at + 1)) {
        size_t end = at + name.size();
        if ((at == 0 || !identifier(text[at - 1])) && (end == text.size() || !identifier(text[end]))) return true;
    }
    return false;
}

}  // namespace
