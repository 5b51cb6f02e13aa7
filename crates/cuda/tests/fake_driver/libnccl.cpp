// A libnccl.so for machines without a GPU: what anyfleet calls of it. Gathers are done by the streams of libcuda.cpp, all
// ranks' at once.
//
// Environment:
//   FAKE_NCCL_VERSION  22304
#include <dlfcn.h>

#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <set>
#include <vector>

typedef unsigned long long u64;

namespace {

enum Status { OK = 0, UNHANDLED = 1, INVALID_ARGUMENT = 4, INVALID_USAGE = 5 };
const int FLOATS = 7;

template <class F>
F* of_driver(const char* name) {
    return reinterpret_cast<F*>(dlsym(dlopen("libcuda.so", RTLD_NOW), name));
}
int call(const char* name) { return of_driver<int(const char*)>("anyfleet_fake_call")(name); }
int wrong(const char* text) {
    of_driver<void(const char*)>("anyfleet_fake_wrong")(text);
    return INVALID_ARGUMENT;
}

struct Comm {
    void* group;
    u64 rank;
    // Whether it has found its ways to the others.
    bool connected = false;
};

// Calls of this thread that are to be taken as one.
thread_local int together = 0;
thread_local std::vector<Comm*> asked;

std::mutex mutex;
// Never freed, so that no handle is another one's later.
std::set<Comm*>& comms() {
    static auto* all = new std::set<Comm*>;
    return *all;
}
bool known(Comm* comm) {
    std::lock_guard<std::mutex> lock(mutex);
    return comms().count(comm);
}
int forget(Comm* comm, const char* what) {
    std::lock_guard<std::mutex> lock(mutex);
    return comms().erase(comm) ? OK : wrong(what);
}

}  // namespace

#define API(name, ...) extern "C" __attribute__((visibility("default"))) int name(__VA_ARGS__)

// For tests: ends of groups that were neither destroyed nor aborted.
API(anyfleet_fake_comms, ) {
    std::lock_guard<std::mutex> lock(mutex);
    return int(comms().size());
}

API(ncclGetVersion, int* version) {
    const char* text = getenv("FAKE_NCCL_VERSION");
    *version = text ? atoi(text) : 22304;
    return OK;
}

API(ncclGroupStart, ) {
    if (int code = call(__func__)) return code;
    together++;
    return OK;
}

API(ncclGroupEnd, ) {
    int code = call(__func__);
    if (!together) return wrong("ncclGroupEnd: nothing was begun");
    if (--together) return code;
    for (Comm* comm : asked) comm->connected |= !code;
    asked.clear();
    return code;
}
extern "C" __attribute__((visibility("default"))) const char* ncclGetErrorString(int status) {
    return status == INVALID_USAGE ? "invalid usage" : status == UNHANDLED ? "unhandled cuda error" : "an error";
}

API(ncclCommInitAll, Comm** out, int count, const int* devices) {
    if (int code = call(__func__)) return code;
    std::set<int> all(devices, devices + count);
    // Two ranks on one device have never worked.
    if (int(all.size()) < count) return INVALID_USAGE;
    if (*all.begin() < 0 || *all.rbegin() >= of_driver<int()>("anyfleet_fake_devices")()) return wrong("no such device");
    void* group = of_driver<void*(u64)>("anyfleet_fake_group")(u64(count));
    std::lock_guard<std::mutex> lock(mutex);
    for (int rank = 0; rank < count; rank++) comms().insert(out[rank] = new Comm{group, u64(rank)});
    return OK;
}

API(ncclAllGather, const void* from, void* to, size_t count, int type, Comm* comm, void* stream) {
    if (int code = call(__func__)) return code;
    if (!known(comm)) return wrong("ncclAllGather: no such end");
    if (type != FLOATS || !count) return wrong("ncclAllGather: not of floats");
    // It waits for ranks that do the same, and those may wait for this one.
    if (!comm->connected && !together) return wrong("ncclAllGather: ranks connect one by one");
    if (together) asked.push_back(comm);
    auto give = of_driver<int(void*, u64, void*, const void*, void*, u64)>("anyfleet_fake_gather");
    return give(comm->group, comm->rank, stream, from, to, 4 * count) ? wrong("ncclAllGather: no such stream") : OK;
}

API(ncclCommAbort, Comm* comm) {
    call(__func__);
    if (known(comm)) of_driver<void(void*)>("anyfleet_fake_stop")(comm->group);
    return forget(comm, "ncclCommAbort: no such end");
}

API(ncclCommDestroy, Comm* comm) {
    call(__func__);
    return forget(comm, "ncclCommDestroy: no such end");
}
