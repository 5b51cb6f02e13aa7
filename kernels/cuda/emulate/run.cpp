// Runs blocks of a launch, one after the other, on the calling thread.
//
// A block's threads run until they wait. Those of one warp go on while any of them can, then those of another: each
// warp runs as far ahead of the others as it may, so a missing barrier shows in what the others then read. The order of
// warps and of lanes is shuffled by the seed, once a block and again at each collective. When nobody can go on, the
// launch ends with a line on who waits for what.
#include "simt.h"

#include <algorithm>
#include <cstdarg>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "tiles.h"
#include "async.h"

namespace emulate {

__thread Here* here = nullptr;

namespace {

const u32 LANES = 32, EVERY = 0xffffffffu;
const u32 MOST_THREADS = 1024, MOST_WARPS = MOST_THREADS / LANES;
// What devices have: by a declaration without asking for more, and in all.
const u32 MOST_STATIC = 48 << 10, MOST_DYNAMIC = 227 << 10;
const u32 CANARY = 0xa5c3965au, CANARY_BYTES = 64;

const char* const NAMES[] = {
    "__syncthreads",   "__syncthreads_or", "__syncthreads_and", "__syncthreads_count", "__syncwarp", "__shfl_sync",
    "__shfl_xor_sync", "__shfl_down_sync", "__shfl_up_sync",    "__ballot_sync",       "__any_sync", "__all_sync",
    "mma_bf16",        "mma_f16",          "mma_s8",            "ldmatrix",            "ldmatrix_transposed",
    "a product of a warpgroup", "products_wait", "barrier_wait", "sync_some",
};
const char* name_of(Wait wait) { return NAMES[u32(wait)]; }

u64 mixed(u64 x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

struct Copy {
    void* shared;
    const void* global;
    bool wanted;
};

struct Warp;
// What a switch needs comes first, in a line or two of the cache.
struct alignas(64) Fiber : Here {
    // Its bit among the warp's places.
    u32 bit = 0;
    u32 index = 0;
    Warp* warp = nullptr;
    Context context;
    u32 mask = 0;
    Wait wait = Wait::Syncthreads;
    bool exited = false;
    // Copies under way: from `copied` on; those below an end are of a group that was ended.
    u32 copied = 0, ended = 0;
    std::vector<Copy> copies;
    std::vector<u32> ends;
};

// Lanes that have come to one collective.
struct Group {
    Wait wait;
    u32 mask, arrived, votes;
};

// Lanes are scheduled by their places, which the seed shuffles.
struct Warp {
    u32 ready, live, turn, bit;
    u32 group_count;
    Group groups[LANES];
    Fiber* at_place[LANES];
    Fiber* at_lane[LANES];
    u64 in[LANES], out[LANES];
    u32 from[LANES];
    Registers registers;
    Products products;
};

struct Declared {
    const void* declaration;
    const char* name;
    u8* at;
    u32 bytes;
};

// What an operating system's thread keeps from launch to launch.
struct Machine {
    Context main;
    Place place;
    const char* kernel = "";
    void (*thread)(const void*) = nullptr;
    const void* params = nullptr;
    u64 random = 0;
    bool shuffled = false, failed = false;
    char* error = nullptr;
    u64 error_len = 0;

    u32 threads = 0, live = 0, warp_count = 0;
    // Places of warps: `warps` is in their order.
    u32 ready = 0, turn = 0;
    u32 arrived = 0, count = 0;
    Wait barrier = Wait::Syncthreads;
    int result = 0;
    std::vector<TileCopy> tiles;
    std::vector<Waiter> waiters;
    SomeThreads some[16];
    std::vector<std::unique_ptr<Fiber>> fibers;
    Warp warps[MOST_WARPS];

    // Dynamic memory, its canary, then what is declared. It begins, as on a device, on no more than a multiple of 128 of
    // the addresses from `base` on.
    u8* base = nullptr;
    u8* memory = nullptr;
    u32 dynamic_bytes = 0, used = 0, declared_bytes = 0;
    std::vector<Declared> declared;

    Machine() {
        base = static_cast<u8*>(aligned_alloc(4096, MEMORY));
        if (!base) abort();
        memory = base + 128;
    }
    ~Machine() {
        for (auto& fiber : fibers) free_stack(fiber->context);
        free(base);
    }
    static const u32 MEMORY = 1 << 20;

    u32 next_random() {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        return u32(random >> 33);
    }
};

// Kept by the thread; `machine` is the same without the cost of a destructor's guard at each use.
thread_local std::unique_ptr<Machine> kept;
__thread Machine* machine ANYFLEET_QUICK = nullptr;

Fiber* running() { return static_cast<Fiber*>(here); }

std::string at_block() {
    const Dim3& b = machine->place.block;
    char text[80];
    snprintf(text, sizeof text, ", block (%u,%u,%u): ", b.x, b.y, b.z);
    return std::string("kernel ") + machine->kernel + text;
}

void record(const std::string& message) {
    if (machine->failed) return;
    machine->failed = true;
    if (machine->error && machine->error_len) {
        snprintf(machine->error, size_t(machine->error_len), "%s%s", at_block().c_str(), message.c_str());
    }
}

// The other threads are abandoned where they are.
[[noreturn]] void leave() {
    switch_to(running()->context, machine->main, true);
    abort();
}

std::string lanes_text(u32 mask) {
    if (mask == EVERY) return "all lanes";
    char text[32];
    snprintf(text, sizeof text, "lanes %#010x", mask);
    return text;
}

std::string state_of(const Fiber& f) {
    if (f.exited) return "exited";
    if (f.wait <= Wait::SyncthreadsCount) return std::string("at ") + name_of(f.wait);
    return std::string("at ") + name_of(f.wait) + " of " + lanes_text(f.mask);
}

// "threads 0-31 at __syncthreads; thread 40 exited": by state, in the order of their first threads.
std::string who_waits() {
    std::vector<std::pair<std::string, std::string>> states;
    Machine& m = *machine;
    for (u32 i = 0; i < m.threads;) {
        std::string state = state_of(*m.fibers[i]);
        u32 end = i + 1;
        while (end < m.threads && state_of(*m.fibers[end]) == state) end++;
        std::string range = std::to_string(i) + (end - i > 1 ? "-" + std::to_string(end - 1) : "");
        size_t s = 0;
        while (s < states.size() && states[s].first != state) s++;
        if (s == states.size()) {
            states.push_back({state, range});
        } else if (states[s].second.size() < 60) {
            states[s].second += "," + range;
        } else if (states[s].second.back() != '.') {
            states[s].second += ",...";
        }
        i = end;
    }
    std::string text;
    for (auto& s : states) {
        bool one = s.second.find_first_of("-,") == std::string::npos;
        text += (text.empty() ? "" : "; ") + std::string(one ? "thread " : "threads ") + s.second + " " + s.first;
    }
    return text;
}

// Of the places that are set, the first from `turn` on, around.
u32 first_from(u32 places, u32 turn) {
    u32 turned = turn ? places >> turn | places << (LANES - turn) : places;
    return (u32(__builtin_ctz(turned)) + turn) % LANES;
}

void bring_tile();

// Goes on with whoever is next, which may be the running thread itself.
void reschedule(Warp* warp, bool last = false) {
    Machine& m = *machine;
    if (!warp) {
        while (!m.ready && !m.tiles.empty()) bring_tile();
        if (!m.ready) {
            record("no thread can go on: " + who_waits());
            leave();
        }
        warp = &m.warps[first_from(m.ready, m.turn)];
    }
    Fiber* me = running();
    Fiber* next = warp->at_place[first_from(warp->ready, warp->turn)];
    if (next == me) return;
    here = next;
    switch_to(me->context, next->context, last);
}

// Of a warp that has `bits` fewer lanes ready: the warp, or nothing where none is left.
Warp* still_ready(Warp& w, u32 bits) {
    w.ready &= ~bits;
    if (w.ready) return &w;
    machine->ready &= ~w.bit;
    return nullptr;
}

void suspend(Fiber& f, Wait wait, u32 mask) {
    f.wait = wait;
    f.mask = mask;
    reschedule(still_ready(*f.warp, f.bit));
}

// The running lane waits for those of the mask; the last to come calls `complete` on behalf of all.
template <class Complete>
void gather(Wait wait, u32 mask, bool vote, Complete complete) {
    Machine& m = *machine;
    Fiber& f = *running();
    Warp& w = *f.warp;
    u32 bit = 1u << f.lane;
    if (!(mask & bit)) {
        fail("thread %u calls %s for %s, which lack its own", f.index, name_of(wait), lanes_text(mask).c_str());
    }
    u32 g = 0;
    while (g < w.group_count && (w.groups[g].wait != wait || w.groups[g].mask != mask)) g++;
    Group& group = w.groups[g];
    if (g == w.group_count) {
        group = {wait, mask, 0, 0};
        w.group_count++;
    }
    group.arrived |= bit;
    group.votes |= vote ? bit : 0;
    if (group.arrived != mask) return suspend(f, wait, mask);

    u32 votes = group.votes;
    group = w.groups[--w.group_count];
    complete(w, votes);
    if (mask == EVERY) {
        w.ready = EVERY;
    } else {
        for (u32 rest = mask; rest; rest &= rest - 1) w.ready |= w.at_lane[__builtin_ctz(rest)]->bit;
    }
    if (!m.shuffled) return reschedule(&w);
    u32 random = m.next_random();
    w.turn = random % LANES;
    // Now and then another warp's threads run in between.
    if (random >> 8 & 7) return reschedule(&w);
    m.turn = random >> 16 & 31;
    reschedule(nullptr);
}

void open_barrier() {
    Machine& m = *machine;
    switch (m.barrier) {
        case Wait::SyncthreadsOr: m.result = m.count > 0; break;
        case Wait::SyncthreadsAnd: m.result = m.count == m.arrived; break;
        default: m.result = int(m.count);
    }
    m.arrived = m.count = 0;
    for (u32 i = 0; i < m.warp_count; i++) {
        Warp& w = m.warps[i];
        w.ready = w.live;
        if (w.live) m.ready |= w.bit;
        if (m.shuffled) w.turn = m.next_random() % LANES;
    }
    if (m.shuffled) m.turn = m.next_random() % LANES;
}

void check_canary(const u8* at, u32 bytes, const char* what, u32 size) {
    for (u32 i = 0; i < bytes; i += 4) {
        u32 word;
        memcpy(&word, at + i, 4);
        if (word == CANARY) continue;
        return record("bytes behind " + std::string(what) + " (" + std::to_string(size) + " bytes) were written, " +
                      std::to_string(i) + " from its end");
    }
}

void fill(u8* at, u32 bytes, u32 word) {
    u32 i = 0;
    for (; i + 4 <= bytes; i += 4) memcpy(at + i, &word, 4);
    memcpy(at + i, &word, bytes - i);
}

void wake(const Waiter& waiter) {
    Warp& w = *static_cast<Warp*>(waiter.warp);
    w.ready |= waiter.bit;
    machine->ready |= w.bit;
}

// Counts what came to a barrier, and ends its phase when nothing is missing.
void count(Barrier& barrier, u32 arrivals, int bytes) {
    Machine& m = *machine;
    Counts counts;
    memcpy(&counts, &barrier, sizeof counts);
    if (arrivals > counts.missing) fail("a barrier has more arrivals than the %u that it expects", counts.expected);
    counts.missing -= arrivals;
    counts.bytes += bytes;
    if (counts.missing == 0 && counts.bytes == 0) {
        counts.phase ^= 1;
        counts.missing = counts.expected;
        auto waits = [&](const Waiter& waiter) { return waiter.barrier == &barrier; };
        for (auto& waiter : m.waiters) {
            if (waits(waiter)) wake(waiter);
        }
        m.waiters.erase(std::remove_if(m.waiters.begin(), m.waiters.end(), waits), m.waiters.end());
    }
    memcpy(&barrier, &counts, sizeof counts);
}

// One of the tiles under way arrives: the first, or any where order is shuffled.
void bring_tile() {
    Machine& m = *machine;
    u32 which = m.shuffled ? m.next_random() % u32(m.tiles.size()) : 0;
    TileCopy copy = m.tiles[which];
    m.tiles.erase(m.tiles.begin() + which);
    const TileMap& map = copy.map;
    for (u32 line = 0; line < map.lines; line++) {
        for (u32 byte = 0; byte < map.line_bytes; byte += 2) {
            i64 row = copy.y + line, at = copy.x * 2 + byte;
            bool there = row >= 0 && row < map.rows && at >= 0 && at < map.row_bytes;
            u8* to = copy.shared + (line * LINE_BYTES + ((byte / 16) ^ line % 8) * 16 + byte % 16);
            u16 value = 0;
            if (there) memcpy(&value, reinterpret_cast<const u8*>(map.address) + u64(row) * map.stride + at, 2);
            memcpy(to, &value, 2);
        }
    }
    count(*copy.barrier, 0, -int(map.lines * map.line_bytes));
}

// Of a warp: computes the groups of products that may not be under way any more.
void finish_products(Warp& w, u32 left) {
    Products& products = w.products;
    if (products.ends.size() <= left) return;
    auto read = [](u32 at) {
        const u8* from = machine->base + at;
        if (from < machine->memory || from + 2 > machine->memory + machine->dynamic_bytes) {
            fail("a product reads byte %u of shared memory, of %u", at, machine->dynamic_bytes);
        }
        u16 value;
        memcpy(&value, from, 2);
        return value;
    };
    u32 groups = u32(products.ends.size()) - left, end = products.ends[groups - 1];
    for (u32 i = 0; i < end; i++) {
        Product& product = products.all[i];
        if (product.wait == Wait::MmaBf16) {
            multiply_some<Bf16s>(product, read);
        } else {
            multiply_some<Halves>(product, read);
        }
        Sums& sums = *product.sums;
        if (--sums.products > 0) continue;
        for (u32 lane = 0; lane < LANES; lane++) memcpy(sums.at[lane], sums.value[lane], sums.count * 4);
    }
    products.all.erase(products.all.begin(), products.all.begin() + end);
    products.ends.erase(products.ends.begin(), products.ends.begin() + groups);
    for (u32& other : products.ends) other -= end;
    auto done = [](const std::unique_ptr<Sums>& sums) { return sums->products == 0; };
    products.sums.erase(std::remove_if(products.sums.begin(), products.sums.end(), done), products.sums.end());
}

void exit_thread() {
    Machine& m = *machine;
    Fiber& f = *running();
    Warp& w = *f.warp;
    if (!w.products.all.empty()) {
        record("thread " + std::to_string(f.index) + " ended with products under way");
        leave();
    }
    f.exited = true;
    w.live &= ~f.bit;
    m.live--;
    Warp* next = still_ready(w, f.bit);
    if (m.live == 0) leave();
    if (m.arrived == m.live) {
        open_barrier();
        next = nullptr;
    }
    reschedule(next, true);
}

void enter_thread() {
    Machine& m = *machine;
    entered(m.main);
    m.thread(m.params);
    exit_thread();
    abort();
}

// Places of `count` things: themselves, or shuffled.
void shuffle_places(Machine& m, u32* places, u32 count) {
    for (u32 i = 0; i < count; i++) places[i] = i;
    if (!m.shuffled) return;
    for (u32 i = count; i > 1; i--) std::swap(places[i - 1], places[m.next_random() % i]);
}

void prepare_block(Machine& m, u64 block, u64 seed) {
    const Dim3 &grid = m.place.grid, &size = m.place.block_size;
    m.place.block = {u32(block % grid.x), u32(block / grid.x % grid.y), u32(block / grid.x / grid.y)};
    m.random = mixed(seed * 0x9e3779b97f4a7c15ull + mixed(block));
    m.live = m.threads;
    m.arrived = m.count = m.turn = 0;
    m.tiles.clear();
    m.waiters.clear();
    for (auto& some : m.some) some = {};
    u32 warp_places[MOST_WARPS], lane_places[LANES];
    shuffle_places(m, warp_places, m.warp_count);
    m.ready = u32((1ull << m.warp_count) - 1);
    Dim3 thread = {0, 0, 0};
    for (u32 i = 0, left = m.threads; left; i++) {
        u32 lanes = left < LANES ? left : LANES;
        left -= lanes;
        Warp& w = m.warps[warp_places[i]];
        w.bit = 1u << warp_places[i];
        w.ready = w.live = u32((1ull << lanes) - 1);
        w.turn = w.group_count = 0;
        w.products = {};
        shuffle_places(m, lane_places, lanes);
        for (u32 lane = 0; lane < lanes; lane++) {
            Fiber& f = *m.fibers[i * LANES + lane];
            f.thread = thread;
            f.lane = lane;
            f.warp = &w;
            f.bit = 1u << lane_places[lane];
            f.exited = false;
            f.copies.clear();
            f.ends.clear();
            f.copied = f.ended = 0;
            w.at_lane[lane] = w.at_place[lane_places[lane]] = &f;
            prepare(f.context, enter_thread, f.index);
            if (++thread.x == size.x) {
                thread.x = 0;
                if (++thread.y == size.y) thread.y = 0, thread.z++;
            }
        }
    }
    fill(m.memory, m.dynamic_bytes, POISON);
    fill(m.memory + m.dynamic_bytes, CANARY_BYTES, CANARY);
    m.declared.clear();
    m.used = (m.dynamic_bytes + CANARY_BYTES + 127) / 128 * 128;
    m.declared_bytes = 0;
}

bool run_block(Machine& m, u64 block, u64 seed) {
    prepare_block(m, block, seed);
    Warp& w = m.warps[first_from(m.ready, 0)];
    Fiber* first = w.at_place[first_from(w.ready, 0)];
    here = first;
    switch_to(m.main, first->context, false);
    here = nullptr;
    if (!m.tiles.empty()) record("the block ended with copies of tiles under way");
    check_canary(m.memory + m.dynamic_bytes, CANARY_BYTES, "SHARED_BYTES", m.dynamic_bytes);
    for (auto& d : m.declared) check_canary(d.at + (d.bytes + 3) / 4 * 4, 16, d.name, d.bytes);
    return !m.failed;
}

// Sixteen bytes of what the launch or a declaration asked for.
void need_shared(const char* what, const void* at) {
    if (reinterpret_cast<uintptr_t>(at) % 16) misaligned(what, at);
    Machine& m = *machine;
    auto within = [at](const u8* from, u32 bytes) {
        uintptr_t first = reinterpret_cast<uintptr_t>(from), byte = reinterpret_cast<uintptr_t>(at);
        return byte >= first && byte - first < bytes && bytes - (byte - first) >= 16;
    };
    bool found = within(m.memory, m.dynamic_bytes);
    for (u32 i = 0; i < m.declared.size() && !found; i++) found = within(m.declared[i].at, m.declared[i].bytes);
    if (!found) fail("thread %u: %s of address %p, which is not of shared memory", running()->index, what, at);
}

}  // namespace

void fail(const char* format, ...) {
    char text[512];
    va_list rest;
    va_start(rest, format);
    vsnprintf(text, sizeof text, format, rest);
    va_end(rest);
    record(text);
    leave();
}

void misaligned(const char* what, const void* at) {
    fail("thread %u: %s of address %p, which is not a multiple of 16", running()->index, what, at);
}

int barrier(Wait wait, int value) {
    Machine& m = *machine;
    Fiber& f = *running();
    if (m.arrived && m.barrier != wait) {
        fail("thread %u is at %s while others wait at %s", f.index, name_of(wait), name_of(m.barrier));
    }
    m.barrier = wait;
    m.count += value != 0;
    if (++m.arrived < m.live) {
        suspend(f, wait, 0);
    } else {
        open_barrier();
        reschedule(nullptr);
    }
    return m.result;
}

void syncwarp(u32 mask) {
    gather(Wait::Syncwarp, mask, false, [](Warp&, u32) {});
}

u64 exchange(Wait wait, u32 mask, u64 value, u32 from) {
    Fiber& f = *running();
    Warp& w = *f.warp;
    w.in[f.lane] = value;
    w.from[f.lane] = from;
    gather(wait, mask, false, [mask](Warp& w, u32) {
        for (u32 rest = mask; rest; rest &= rest - 1) {
            u32 lane = u32(__builtin_ctz(rest)), from = w.from[lane];
            // What a lane outside of the mask has is undefined.
            w.out[lane] = mask >> from & 1u ? w.in[from] : u64(POISON) << 32 | POISON;
        }
    });
    return w.out[f.lane];
}

u32 vote(Wait wait, u32 mask, bool value) {
    Fiber& f = *running();
    gather(wait, mask, value, [wait, mask](Warp& w, u32 votes) {
        u32 result = wait == Wait::Ballot ? votes : wait == Wait::Any ? votes != 0 : votes == mask;
        for (u32 rest = mask; rest; rest &= rest - 1) w.out[__builtin_ctz(rest)] = result;
    });
    return u32(f.warp->out[f.lane]);
}

void mma(Wait wait, void* d, const u32* a, const u32* b) {
    Fiber& f = *running();
    Registers& r = f.warp->registers;
    r.d[f.lane] = d;
    r.a[f.lane] = a;
    r.b[f.lane] = b;
    gather(wait, EVERY, false, [wait](Warp& w, u32) {
        switch (wait) {
            case Wait::MmaBf16: return multiply_floats<Bf16s>(w.registers);
            case Wait::MmaF16: return multiply_floats<Halves>(w.registers);
            default: return multiply_bytes(w.registers);
        }
    });
}

void matrix_rows(Wait wait, u32* d, const void* row) {
    Fiber& f = *running();
    Registers& r = f.warp->registers;
    need_shared(name_of(wait), row);
    r.d[f.lane] = d;
    r.a[f.lane] = row;
    gather(wait, EVERY, false, [wait](Warp& w, u32) {
        wait == Wait::Ldmatrix ? load_rows(w.registers) : load_columns(w.registers);
    });
}

void* shared_memory(const void* declaration, const char* name, u32 bytes, u32 align) {
    Machine& m = *machine;
    for (auto& d : m.declared) {
        if (d.declaration == declaration) return d.at;
    }
    m.declared_bytes += bytes;
    if (m.declared_bytes > MOST_STATIC) fail("SHARED of %u bytes in all, of at most %u", m.declared_bytes, MOST_STATIC);
    // As aligned as its type and no more, so that a missing alignas shows.
    align = align < 4 ? 4 : align;
    u32 at = (m.used + 2 * align - 1) / (2 * align) * (2 * align) + align;
    u32 end = at + (bytes + 3) / 4 * 4;
    m.used = end + 16;
    fill(m.memory + at, bytes, POISON);
    fill(m.memory + end, 16, CANARY);
    m.declared.push_back({declaration, name, m.memory + at, bytes});
    return m.memory + at;
}

u8* shared_bytes() { return machine->memory; }

void start_copy(void* shared, const void* global, bool wanted) {
    need_shared("copy_async", shared);
    if (reinterpret_cast<uintptr_t>(global) % 16) misaligned("copy_async", global);
    fill(static_cast<u8*>(shared), 16, POISON);
    running()->copies.push_back({shared, global, wanted});
}

void commit_copies() {
    Fiber& f = *running();
    f.ends.push_back(u32(f.copies.size()));
}

void wait_copies(u32 left) {
    Fiber& f = *running();
    while (f.ends.size() - f.ended > left) {
        for (u32 end = f.ends[f.ended++]; f.copied < end; f.copied++) {
            const Copy& c = f.copies[f.copied];
            if (c.wanted) {
                memcpy(c.shared, c.global, 16);
            } else {
                memset(c.shared, 0, 16);
            }
        }
    }
    // Those that are done are forgotten now and then.
    if (f.ended < f.ends.size() && f.ended < 64) return;
    f.copies.erase(f.copies.begin(), f.copies.begin() + f.copied);
    f.ends.erase(f.ends.begin(), f.ends.begin() + f.ended);
    for (u32& end : f.ends) end -= f.copied;
    f.copied = f.ended = 0;
}

u32 shared_offset(const void* at) {
    uintptr_t offset = reinterpret_cast<uintptr_t>(at) - reinterpret_cast<uintptr_t>(machine->base);
    if (offset >= Machine::MEMORY) fail("thread %u: %p is not an address of shared memory", running()->index, at);
    return u32(offset);
}

void start_barrier(Barrier& barrier, u32 arrivals) {
    Counts counts = {BARRIER_TAG, 0, arrivals, arrivals, 0};
    memcpy(&barrier, &counts, sizeof counts);
}

static Counts counts_of(const Barrier& barrier) {
    Counts counts;
    memcpy(&counts, &barrier, sizeof counts);
    if (counts.tag != BARRIER_TAG) fail("thread %u uses a barrier before barrier_init", running()->index);
    return counts;
}

void arrive(Barrier& barrier, u32 bytes) {
    counts_of(barrier);
    count(barrier, 1, int(bytes));
}

void await(Barrier& barrier, u32 phase) {
    Machine& m = *machine;
    Fiber& f = *running();
    if (m.shuffled && !m.tiles.empty() && m.next_random() % 4 == 0) bring_tile();
    while (counts_of(barrier).phase == phase) {
        m.waiters.push_back({&barrier, f.bit, f.warp});
        suspend(f, Wait::Barrier, 0);
    }
}

void start_tile(void* shared, const TileMap& map, u32 x, u32 y, Barrier& barrier) {
    u32 bytes = map.lines * map.line_bytes;
    counts_of(barrier);
    if (reinterpret_cast<uintptr_t>(&map) % 64) fail("thread %u: a map at %p, not on a multiple of 64", running()->index, &map);
    u32 at = shared_offset(shared);
    const u8* end = machine->memory + machine->dynamic_bytes;
    if (at % LINES_BYTES || at < 128 || static_cast<u8*>(shared) + bytes > end) {
        fail("thread %u: a tile of %u bytes to byte %u of shared memory", running()->index, bytes, at);
    }
    fill(static_cast<u8*>(shared), bytes, POISON);
    machine->tiles.push_back({static_cast<u8*>(shared), map, int(x), int(y), &barrier});
}

void sync_some(u32 number, u32 threads) {
    Fiber& f = *running();
    if (number >= 16 || threads % LANES || threads == 0) fail("sync_some of %u threads at barrier %u", threads, number);
    SomeThreads& some = machine->some[number];
    if (some.arrived && some.threads != threads) fail("sync_some: barrier %u has two numbers of threads", number);
    some.threads = threads;
    if (++some.arrived < threads) {
        some.waiters.push_back({nullptr, f.bit, f.warp});
        return suspend(f, Wait::SyncSome, 0);
    }
    std::vector<Waiter> waiters;
    waiters.swap(some.waiters);
    some.arrived = 0;
    for (auto& waiter : waiters) wake(waiter);
}

void begin_products() { running()->warp->products.begun = true; }

void start_product(Wait wait, float* d, u32 count, const Factors& factors) {
    Fiber& f = *running();
    Registers& r = f.warp->registers;
    if (!f.warp->products.begun) fail("thread %u asks for a product before products_begin", f.index);
    r.d[f.lane] = d;
    r.a[f.lane] = &factors;
    gather(Wait::Product, EVERY, false, [wait, count, &f](Warp& w, u32) {
        Products& products = w.products;
        auto is = [&](const std::unique_ptr<Sums>& sums) { return sums->at[0] == w.registers.d[0]; };
        auto found = std::find_if(products.sums.begin(), products.sums.end(), is);
        if (found == products.sums.end()) {
            products.sums.push_back(std::make_unique<Sums>());
            found = products.sums.end() - 1;
            Sums& sums = **found;
            sums.count = count;
            sums.products = 0;
            for (u32 lane = 0; lane < LANES; lane++) {
                sums.at[lane] = static_cast<float*>(w.registers.d[lane]);
                memcpy(sums.value[lane], sums.at[lane], count * 4);
                fill(reinterpret_cast<u8*>(sums.at[lane]), count * 4, POISON);
            }
        }
        (*found)->products++;
        const Factors& first = *static_cast<const Factors*>(w.registers.a[0]);
        Product product = {found->get(), wait, f.index / LANES % 4, first.a != nullptr, {}, first};
        for (u32 lane = 0; lane < LANES; lane++) {
            const Factors& own = *static_cast<const Factors*>(w.registers.a[lane]);
            if (own.b_matrix != first.b_matrix || own.a_matrix != first.a_matrix || own.add != first.add) {
                fail("lanes of a warp ask for different products");
            }
            if (own.a) memcpy(product.a[lane], own.a, sizeof product.a[lane]);
        }
        products.all.push_back(product);
    });
}

void commit_products() {
    // The last lane ends the group for all.
    gather(Wait::Product, EVERY, true, [](Warp& w, u32) {
        w.products.ends.push_back(u32(w.products.all.size()));
        w.products.begun = false;
    });
}

void wait_products(u32 left) {
    gather(Wait::ProductsWait, EVERY, false, [left](Warp& w, u32) { finish_products(w, left); });
}

}  // namespace emulate

// Runs blocks first_block.. of the grid, numbered with x first: a caller may spread a launch over threads.
// 0, or 1 and one line in `error`.
extern "C" __attribute__((visibility("default"))) int anyfleet_launch(
    const char* kernel_name, void (*thread)(const void*), const void* params, const u32 grid[3], const u32 block[3],
    u32 shared_bytes, u32 first_block, u32 block_count, u64 seed, char* error, u64 error_len) {
    using namespace emulate;
    if (!kept) kept = std::make_unique<Machine>();
    machine = kept.get();
    Machine& m = *machine;
    m.kernel = kernel_name;
    m.thread = thread;
    m.params = params;
    m.place = {{first_block, 0, 0}, {block[0], block[1], block[2]}, {grid[0], grid[1], grid[2]}};
    m.shuffled = seed != 0;
    m.failed = false;
    m.error = error;
    m.error_len = error_len;
    m.dynamic_bytes = shared_bytes;
    u64 threads = u64(block[0]) * block[1] * block[2], blocks = u64(grid[0]) * grid[1] * grid[2];
    if (block[0] > MOST_THREADS || block[1] > MOST_THREADS || threads == 0 || threads > MOST_THREADS) {
        record("a block of " + std::to_string(threads) + " threads, of 1 to " + std::to_string(MOST_THREADS));
    } else if (shared_bytes > MOST_DYNAMIC) {
        record(std::to_string(shared_bytes) + " bytes of shared memory, of at most " + std::to_string(MOST_DYNAMIC));
    } else if (u64(first_block) + block_count > blocks) {
        record("blocks beyond the grid's " + std::to_string(blocks));
    }
    if (m.failed) return 1;
    m.threads = u32(threads);
    m.warp_count = (m.threads + LANES - 1) / LANES;
    while (m.fibers.size() < m.threads) {
        m.fibers.emplace_back(new Fiber);
        Fiber& f = *m.fibers.back();
        f.index = u32(m.fibers.size() - 1);
        f.place = &m.place;
        allocate_stack(f.context);
    }
    for (u32 i = 0; i < block_count; i++) {
        if (!run_block(m, u64(first_block) + i, seed)) return 1;
    }
    return 0;
}
