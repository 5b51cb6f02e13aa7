// A libcuda.so for machines without a GPU: what anyfleet calls of CUDA's driver, strict about its rules and late with its
// work.
//
// A device's memory is memory of the process, with a page behind it that nobody may touch; its kernels are those of
// kernels/cuda, compiled for the host. Copies and launches wait in their stream until somebody synchronizes, and are then
// done as far as that asks for and no further: what is read too early, or reused too soon, has the wrong bytes. Nodes of a
// graph run in the last order that their dependencies allow. What breaks a rule fails as it does with CUDA, and is a line
// of the report.
//
// Environment:
//   FAKE_CUDA_VERSION     of the driver's interface: 12080
//   FAKE_CUDA_DEVICES     how many there are: 1
//   FAKE_CUDA_CAPABILITY  their compute capability: 90
//   FAKE_CUDA_MEMORY      bytes that each of them has: 1 GiB
//   FAKE_CUDA_INTEGRATED  1 where these are the system's
//   FAKE_CUDA_KERNELS     a library of the kernels and of emulate/run.cpp
//   FAKE_CUDA_FAIL        what fails, see `anyfleet_fake_fail`
//   FAKE_CUDA_REPORT      a file that is written at exit: lines `wrong <rule that was broken>`, `leak <what was not freed>`
//                         and `calls <n> <function>`
#include "state.h"

namespace {

int device_count() { return int(setting("FAKE_CUDA_DEVICES", 1)); }
bool is_device(int device) { return device >= 0 && device < device_count(); }

__attribute__((constructor)) void start() {
    const char* text = getenv("FAKE_CUDA_FAIL");
    std::stringstream rules(text ? text : "");
    for (std::string rule; getline(rules, rule, ',');) fail_later(rule);
}

__attribute__((destructor)) void report() {
    State& s = state();
    const char* path = getenv("FAKE_CUDA_REPORT");
    FILE* file = path ? fopen(path, "w") : nullptr;
    if (!file) return;
    for (auto& entry : s.primary) {
        Context* context = entry.second;
        if (!context->alive) continue;
        // A process may keep it, and nothing in it.
        leaked(u64(context->retained) - 1, "uses of a context");
        destroy(context);
    }
    for (auto& line : s.wrong) fprintf(file, "wrong %s\n", line.c_str());
    for (auto& line : s.leaks) fprintf(file, "leak %s\n", line.c_str());
    for (auto& entry : s.calls) fprintf(file, "calls %llu %s\n", entry.second, entry.first.c_str());
    fclose(file);
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))
// A function of CUDA's driver: crates/cuda/src/driver/probe.rs lists the same.
#define API(name, ...) EXPORT int name(__VA_ARGS__)

// For tests: calls of a function so far; `kernel` and `copy` are those that were done.
EXPORT u64 anyfleet_fake_calls(const char* name) {
    std::lock_guard<std::mutex> lock(state().mutex);
    return state().calls[name];
}
// For other libraries: counts a call, and gives 0, or a code where it is to fail.
EXPORT int anyfleet_fake_call(const char* name) {
    std::lock_guard<std::mutex> lock(state().mutex);
    return due(name).code;
}
// For other libraries: a rule was broken.
EXPORT void anyfleet_fake_wrong(const char* text) {
    std::lock_guard<std::mutex> lock(state().mutex);
    note("%s", text);
}
// For other libraries: the context that is current on this thread, or null.
EXPORT const void* anyfleet_fake_context() { return current; }
// For other libraries: gives a product to a stream. Not 0 where it keeps no rule.
EXPORT int anyfleet_fake_product(Stream* stream, const Product* product) {
    Call call("anyfleet_fake_product");
    if (call.code || !call.known(state().streams, stream, "stream")) return call.code;
    Work work = {Work::Multiply};
    work.product = *product;
    give(*stream, std::move(work));
    return OK;
}
// For other libraries: how many devices there are.
EXPORT int anyfleet_fake_devices() { return device_count(); }
// For other libraries: a group of so many ranks; it is never freed.
EXPORT Group* anyfleet_fake_group(u64 ranks) { return new Group{ranks, false, std::vector<u64>(ranks)}; }
// For other libraries: ends what waits for ranks of the group.
EXPORT void anyfleet_fake_stop(Group* group) {
    std::lock_guard<std::mutex> lock(state().mutex);
    group->stopped = true;
}
// For other libraries: gives a gather to the stream of a rank. Not 0 where there is no such stream.
EXPORT int anyfleet_fake_gather(Group* group, u64 rank, Stream* stream, const void* from, void* to, u64 bytes) {
    std::lock_guard<std::mutex> lock(state().mutex);
    if (!state().streams.count(stream)) return INVALID_HANDLE;
    Work work = {Work::Gather, 0, static_cast<char*>(to), static_cast<const char*>(from), bytes};
    work.group = group;
    work.rank = rank;
    work.turn = group->turns[rank]++;
    give(*stream, std::move(work));
    return OK;
}
// For tests: copies, records and launches that wait for somebody to synchronize.
EXPORT u64 anyfleet_fake_waiting() {
    std::lock_guard<std::mutex> lock(state().mutex);
    u64 count = 0;
    for (Stream* stream : state().streams) count += stream->waiting.size();
    return count;
}
// For tests: rules that were broken, and kinds of things that were not freed, so far. Nothing may be in use.
EXPORT u64 anyfleet_fake_faults() {
    std::lock_guard<std::mutex> lock(state().mutex);
    u64 kept = 0;
    for (auto& entry : state().primary) {
        if (entry.second->alive) kept += things(entry.second);
    }
    return state().wrong.size() + state().leaks.size() + kept;
}
// For tests: what fails from now on, in place of what was to fail. `<function>:<n>` lets its nth call return
// CUDA_ERROR_LAUNCH_FAILED; `:<code>` behind it is another error; with `:sticky` the context has failed for good.
// `kernel:<n>` and `copy:<n>` fail when they are done, and are always for good; `kernel@<device>:<n>` counts those of a device.
EXPORT void anyfleet_fake_fail(const char* rule) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().failures.clear();
    if (*rule) fail_later(rule);
}

API(cuInit, u32 flags) {
    Call call(__func__, Call::Nothing);
    if (call.code) return call.code;
    if (flags) return call.wrong(INVALID_VALUE, "flags are 0");
    if (device_count() == 0) return NO_DEVICE;
    state().initialized = true;
    return OK;
}

API(cuDriverGetVersion, int* version) {
    Call call(__func__, Call::Nothing);
    if (!call.code) *version = int(setting("FAKE_CUDA_VERSION", 12080));
    return call.code;
}

API(cuGetErrorName, int code, const char** out) {
    Call call(__func__, Call::Nothing);
    *out = nullptr;
    for (const Text& text : TEXTS) {
        if (text.code == code) *out = text.name;
    }
    return *out ? OK : INVALID_VALUE;
}

API(cuGetErrorString, int code, const char** out) {
    Call call(__func__, Call::Nothing);
    *out = nullptr;
    for (const Text& text : TEXTS) {
        if (text.code == code) *out = text.text;
    }
    return *out ? OK : INVALID_VALUE;
}

API(cuDeviceGet, int* device, int ordinal) {
    Call call(__func__, Call::Driver);
    if (call.code) return call.code;
    if (!is_device(ordinal)) return call.wrong(INVALID_DEVICE, "device %d", ordinal);
    *device = ordinal;
    return OK;
}

API(cuDeviceGetCount, int* count) {
    Call call(__func__, Call::Driver);
    if (!call.code) *count = device_count();
    return call.code;
}

API(cuDeviceGetName, char* name, int len, int device) {
    Call call(__func__, Call::Driver);
    if (call.code) return call.code;
    if (!is_device(device)) return call.wrong(INVALID_DEVICE, "device %d", device);
    snprintf(name, size_t(len), "Fake H200");
    return OK;
}

API(cuDeviceGetAttribute, int* value, int attribute, int device) {
    Call call(__func__, Call::Driver);
    if (call.code) return call.code;
    if (!is_device(device)) return call.wrong(INVALID_DEVICE, "device %d", device);
    int capability = int(setting("FAKE_CUDA_CAPABILITY", 90));
    switch (attribute) {
        case 16: *value = 132; return OK;
        case 18: *value = int(setting("FAKE_CUDA_INTEGRATED", 0)); return OK;
        case 75: *value = capability / 10; return OK;
        case 76: *value = capability % 10; return OK;
        default: return call.wrong(INVALID_VALUE, "attribute %d is not known here", attribute);
    }
}

API(cuDeviceTotalMem_v2, size_t* bytes, int device) {
    Call call(__func__, Call::Driver);
    if (call.code) return call.code;
    if (!is_device(device)) return call.wrong(INVALID_DEVICE, "device %d", device);
    *bytes = setting("FAKE_CUDA_MEMORY", 1 << 30);
    return OK;
}

API(cuDevicePrimaryCtxRetain, Context** out, int device) {
    Call call(__func__, Call::Driver);
    if (call.code) return call.code;
    if (!is_device(device)) return call.wrong(INVALID_DEVICE, "device %d", device);
    Context*& context = state().primary[device];
    if (!context || !context->alive) {
        context = new Context{device};
        state().contexts.insert(context);
    }
    context->retained++;
    *out = context;
    return OK;
}

API(cuDevicePrimaryCtxRelease_v2, int device) {
    Call call(__func__, Call::Driver);
    auto found = state().primary.find(device);
    if (found == state().primary.end() || !found->second->alive) {
        return call.wrong(INVALID_CONTEXT, "released more often than retained");
    }
    if (--found->second->retained == 0) destroy(found->second);
    return call.code;
}

API(cuCtxSetCurrent, Context* context) {
    Call call(__func__, Call::Driver);
    if (call.code) return call.code;
    if (context && !state().contexts.count(context)) return call.wrong(INVALID_CONTEXT, "no such context");
    if (context && !context->alive) return call.wrong(CONTEXT_IS_DESTROYED, "the context was released");
    current = context;
    return OK;
}

API(cuMemGetInfo_v2, size_t* free, size_t* total) {
    Call call(__func__);
    if (call.code) return call.code;
    *total = setting("FAKE_CUDA_MEMORY", 1 << 30);
    *free = *total - used(current->device);
    return OK;
}

API(cuMemAlloc_v2, u64* out, size_t bytes) {
    Call call(__func__);
    call.waits_for_all();
    if (call.code) return call.code;
    if (!bytes) return call.wrong(INVALID_VALUE, "0 bytes");
    u64 total = setting("FAKE_CUDA_MEMORY", 1 << 30), free = total - used(current->device);
    if (bytes > total || taken(bytes) > free) return OUT_OF_MEMORY;
    char* at;
    // Floats that were not written are not numbers.
    if (!map_memory(state().device, bytes, GRAIN, 0xff, &at)) return OUT_OF_MEMORY;
    *out = reinterpret_cast<u64>(at);
    return OK;
}

API(cuMemFree_v2, u64 address) {
    Call call(__func__);
    auto found = state().device.find(reinterpret_cast<char*>(address));
    if (found == state().device.end()) return call.wrong(INVALID_VALUE, "no allocation begins there");
    if (found->second.context != current) return call.wrong(INVALID_VALUE, "the allocation is another context's");
    int code = finish_all(current);
    unmap(state().device, found);
    return call.code ? call.code : code;
}

API(cuMemHostAlloc, void** out, size_t bytes, u32 flags) {
    Call call(__func__);
    call.waits_for_all();
    if (call.code) return call.code;
    if (!bytes || flags > 7) return call.wrong(INVALID_VALUE, "%zu bytes, flags %u", bytes, flags);
    char* at;
    if (!map_memory(state().host, bytes, 64, 0xa5, &at)) return OUT_OF_MEMORY;
    *out = at;
    return OK;
}

API(cuMemFreeHost, void* memory) {
    Call call(__func__);
    auto found = state().host.find(static_cast<char*>(memory));
    if (found == state().host.end()) return call.wrong(INVALID_VALUE, "no page-locked memory begins there");
    const Memory& freed = found->second;
    for (Stream* stream : state().streams) {
        for (const Work& work : stream->waiting) {
            auto within = [&](const char* at) { return at >= freed.at && at < freed.at + freed.bytes; };
            // After a failure nothing of it is done any more.
            if (!stream->context->broken && (within(work.from) || within(work.to))) {
                call.wrong(OK, "a copy that was not waited for uses the memory");
            }
        }
    }
    unmap(state().host, found);
    return call.code;
}

API(cuMemcpyHtoDAsync_v2, u64 to, const void* from, size_t bytes, Stream* stream) {
    Call call(__func__);
    Work work = {Work::ToDevice, 0, reinterpret_cast<char*>(to), static_cast<const char*>(from), bytes};
    return copy_async(call, work, stream, true, false);
}

API(cuMemcpyDtoHAsync_v2, void* to, u64 from, size_t bytes, Stream* stream) {
    Call call(__func__);
    Work work = {Work::ToHost, 0, static_cast<char*>(to), reinterpret_cast<const char*>(from), bytes};
    return copy_async(call, work, stream, false, true);
}

API(cuMemcpyDtoDAsync_v2, u64 to, u64 from, size_t bytes, Stream* stream) {
    Call call(__func__);
    Work work = {Work::Within, 0, reinterpret_cast<char*>(to), reinterpret_cast<const char*>(from), bytes};
    return copy_async(call, work, stream, false, false);
}

API(cuStreamCreate, Stream** out, u32 flags) {
    Call call(__func__);
    if (call.code) return call.code;
    if (flags > 1) return call.wrong(INVALID_VALUE, "flags %u", flags);
    *out = new Stream{current, {}};
    state().streams.insert(*out);
    return OK;
}

API(cuStreamSynchronize, Stream* stream) {
    Call call(__func__);
    if (call.code || !call.known(state().streams, stream, "stream")) return call.code;
    return finish(*stream, ~0ull);
}

API(cuStreamDestroy_v2, Stream* stream) {
    Call call(__func__);
    if (!call.known(state().streams, stream, "stream")) return call.code;
    int code = finish(*stream, ~0ull);
    state().streams.erase(stream);
    return call.code ? call.code : code;
}

API(cuEventCreate, Event** out, u32 flags) {
    Call call(__func__);
    if (call.code) return call.code;
    if (flags > 7) return call.wrong(INVALID_VALUE, "flags %u", flags);
    *out = new Event{current};
    state().events.insert(*out);
    return OK;
}

API(cuEventRecord, Event* event, Stream* stream) {
    Call call(__func__);
    State& s = state();
    if (call.code || !call.known(s.events, event, "event") || !call.known(s.streams, stream, "stream")) return call.code;
    give(*stream, {Work::Record});
    event->stream = stream;
    event->number = stream->given;
    return OK;
}

API(cuEventSynchronize, Event* event) {
    Call call(__func__);
    if (call.code || !call.known(state().events, event, "event")) return call.code;
    if (!event->stream || !state().streams.count(event->stream)) return OK;
    return finish(*event->stream, event->number);
}

API(cuEventDestroy_v2, Event* event) {
    Call call(__func__);
    if (call.known(state().events, event, "event")) state().events.erase(event);
    return call.code;
}

// An image is a line `ANYFLEET FAKE CUBIN <module> <architecture>`, and the source behind it.
API(cuModuleLoadData, Module** out, const char* image) {
    Call call(__func__);
    if (call.code) return call.code;
    const char MAGIC[] = "ANYFLEET FAKE CUBIN ";
    if (!image || strncmp(image, MAGIC, strlen(MAGIC))) return INVALID_IMAGE;
    const char* end = image + strcspn(image, "\n");
    std::stringstream line(std::string(image + strlen(MAGIC), end));
    std::string name, architecture;
    line >> name >> architecture;
    u64 capability = setting("FAKE_CUDA_CAPABILITY", 90);
    char* rest = nullptr;
    u64 of = architecture.compare(0, 3, "sm_") ? 0 : strtoull(architecture.c_str() + 3, &rest, 10);
    // Code runs on newer devices of its generation, but for what only one architecture has.
    bool runs = of == capability || (of / 10 == capability / 10 && of < capability && rest && !*rest);
    if (!runs) {
        call.wrong(OK, "%s is for %s, and the device is sm_%llu", name.c_str(), architecture.c_str(), capability);
        return NO_BINARY_FOR_GPU;
    }
    *out = new Module{current, name, *end ? end + 1 : ""};
    state().modules.insert(*out);
    return OK;
}

API(cuModuleGetFunction, Function** out, Module* module, const char* name) {
    Call call(__func__);
    call.waits_for_all();
    if (call.code || !call.known(state().modules, module, "module")) return call.code;
    const std::string PREFIX = "anyfleet_", symbol = name;
    bool prefixed = symbol.compare(0, PREFIX.size(), PREFIX) == 0;
    bool there = prefixed && (module->source.empty() || has_word(module->source, symbol.substr(PREFIX.size())));
    void* thread = there ? kernel_symbol(symbol) : nullptr;
    auto* params = static_cast<const u32*>(kernel_symbol(symbol + "_params"));
    auto* threads = static_cast<const u32*>(kernel_symbol(symbol + "_threads"));
    if (!thread || !params || !threads) return call.wrong(NOT_FOUND, "%s is not in %s", name, module->name.c_str());
    *out = new Function{module, symbol, reinterpret_cast<void (*)(const void*)>(thread), *params, *threads};
    state().functions.insert(*out);
    return OK;
}

API(cuModuleUnload, Module* module) {
    Call call(__func__);
    if (!call.known(state().modules, module, "module")) return call.code;
    for (Stream* stream : state().streams) {
        for (const Work& work : stream->waiting) {
            if (work.kind == Work::Kernel && work.launch.function->module == module && !current->broken) {
                call.wrong(OK, "a launch of %s that was not waited for is of the module", work.launch.function->name.c_str());
            }
        }
    }
    state().modules.erase(module);
    return call.code;
}

API(cuFuncSetAttribute, Function* function, int attribute, int value) {
    Call call(__func__);
    if (call.code) return call.code;
    if (!state().functions.count(function)) return call.wrong(INVALID_HANDLE, "no such function");
    if (attribute != 8) return call.wrong(INVALID_VALUE, "attribute %d is not known here", attribute);
    if (value < 0 || u32(value) > MOST_SHARED) {
        return call.wrong(INVALID_VALUE, "%s: %d bytes of shared memory, of %u", function->name.c_str(), value, MOST_SHARED);
    }
    function->shared = u32(value);
    return OK;
}

API(cuLaunchKernel, Function* function, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz, u32 shared, Stream* stream,
    void** params, void** extra) {
    Call call(__func__);
    if (call.code || !call.known(state().streams, stream, "stream")) return call.code;
    const u32 grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    Work work = {Work::Kernel};
    if (!checked(call, function, grid, block, shared, params, extra, work.launch)) return call.code;
    give(*stream, std::move(work));
    return OK;
}

API(cuGraphCreate, Graph** out, u32 flags) {
    Call call(__func__);
    if (call.code) return call.code;
    if (flags) return call.wrong(INVALID_VALUE, "flags are 0");
    *out = new Graph{current, {}};
    state().graphs.insert(*out);
    return OK;
}

// CUDA_KERNEL_NODE_PARAMS_v2.
struct NodeParams {
    Function* function;
    u32 grid[3], block[3], shared;
    void **params, **extra;
    void *kernel, *context;
};

API(cuGraphAddKernelNode_v2, Node** out, Graph* graph, Node* const* after, size_t count, const NodeParams* p) {
    Call call(__func__);
    if (call.code || !call.known(state().graphs, graph, "graph")) return call.code;
    if (count && !after) return call.wrong(INVALID_VALUE, "%zu dependencies, and they are nowhere", count);
    Node node = {graph, {}, {}};
    for (size_t i = 0; i < count; i++) {
        const auto& all = graph->nodes;
        bool known = std::find(all.begin(), all.end(), after[i]) != all.end();
        bool twice = std::find(node.after.begin(), node.after.end(), after[i]) != node.after.end();
        if (!known || twice) return call.wrong(INVALID_VALUE, "dependency %zu is no node of the graph, or twice there", i);
        node.after.push_back(after[i]);
    }
    if (p->kernel) return call.wrong(INVALID_VALUE, "both a function and a kernel");
    if (!checked(call, p->function, p->grid, p->block, p->shared, p->params, p->extra, node.launch)) return call.code;
    *out = new Node(std::move(node));
    graph->nodes.push_back(*out);
    return OK;
}

API(cuGraphInstantiateWithFlags, Exec** out, Graph* graph, u64 flags) {
    Call call(__func__);
    if (call.code || !call.known(state().graphs, graph, "graph")) return call.code;
    if (flags) return call.wrong(INVALID_VALUE, "flags are 0");
    Exec* exec = new Exec{current, {}};
    std::vector<Node*> left = graph->nodes;
    auto ready = [&](Node* node) {
        auto waits = [&](Node* before) { return std::find(left.begin(), left.end(), before) != left.end(); };
        return std::none_of(node->after.begin(), node->after.end(), waits);
    };
    while (!left.empty()) {
        // Nodes only depend on earlier ones, so that there is always one.
        auto last = std::find_if(left.rbegin(), left.rend(), ready);
        exec->launches.push_back((*last)->launch);
        left.erase(std::next(last).base());
    }
    state().execs.insert(exec);
    *out = exec;
    return OK;
}

// Where it was not, the first launch does so.
API(cuGraphUpload, Exec* exec, Stream* stream) {
    Call call(__func__);
    call.waits_for_all();
    State& s = state();
    if (call.code || !call.known(s.execs, exec, "instance of a graph") || !call.known(s.streams, stream, "stream")) {
        return call.code;
    }
    exec->uploaded = true;
    return OK;
}

API(cuGraphLaunch, Exec* exec, Stream* stream) {
    Call call(__func__);
    State& s = state();
    if (call.code || !call.known(s.execs, exec, "instance of a graph") || !call.known(s.streams, stream, "stream")) {
        return call.code;
    }
    if (!exec->uploaded) call.waits_for_all();
    exec->uploaded = true;
    for (const Launch& launch : exec->launches) {
        Work work = {Work::Kernel};
        work.launch = launch;
        give(*stream, std::move(work));
    }
    return OK;
}

// One that runs is freed when it is done.
API(cuGraphExecDestroy, Exec* exec) {
    Call call(__func__);
    if (call.known(state().execs, exec, "instance of a graph")) state().execs.erase(exec);
    return call.code;
}

API(cuGraphDestroy, Graph* graph) {
    Call call(__func__);
    if (call.known(state().graphs, graph, "graph")) state().graphs.erase(graph);
    return call.code;
}

// As `TileMap` of emulate/warpgroup.h.
API(cuTensorMapEncodeTiled, void* map, int type, u32 rank, void* address, const u64* shape, const u64* strides,
    const u32* tile, const u32* steps, int interleave, int swizzle, int promotion, int fill) {
    Call call(__func__);
    if (call.code) return call.code;
    const int U16 = 1, SWIZZLE_128 = 3;
    bool right = u64(map) % 64 == 0 && type == U16 && rank == 2 && u64(address) % 16 == 0 && shape[0] > 0 && shape[1] > 0 &&
                 strides[0] % 16 == 0 && strides[0] >= 2 * shape[0] && tile[0] * 2 <= 128 && tile[0] * 2 % 16 == 0 &&
                 tile[1] > 0 && tile[1] <= 256 && steps[0] == 1 && steps[1] == 1 && interleave == 0 &&
                 swizzle == SWIZZLE_128 && promotion >= 0 && promotion <= 3 && fill == 0;
    if (!right) return call.wrong(INVALID_VALUE, "a map of tiles with a field that is out of bounds");
    struct {
        u64 address, stride;
        u32 row_bytes, rows, line_bytes, lines;
        u64 rest[12];
    } made = {u64(address), strides[0], u32(shape[0] * 2), u32(shape[1]), tile[0] * 2, tile[1], {}};
    static_assert(sizeof made == 128, "a map is 128 bytes");
    memcpy(map, &made, sizeof made);
    return OK;
}
