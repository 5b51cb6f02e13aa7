// Stacks and the switch between them. A switch saves what a called function must keep, and makes no system call.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>

// gcc tells of the address sanitizer by a macro, clang by a feature.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(ANYFLEET_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define ANYFLEET_UCONTEXT
#endif
#ifdef ANYFLEET_UCONTEXT
#include <ucontext.h>
#endif

namespace emulate __attribute__((visibility("hidden"))) {

// The sanitizer puts zones around each local.
#ifdef __SANITIZE_ADDRESS__
const size_t STACK_BYTES = 512 << 10;
#else
const size_t STACK_BYTES = 128 << 10;
#endif

struct Context {
#ifdef ANYFLEET_UCONTEXT
    ucontext_t at;
#else
    void* at = nullptr;
#endif
    char* stack = nullptr;
    size_t stack_bytes = 0;
    void* sanitizer = nullptr;
};

// Below a stack lies a page nobody may touch: an overflow ends the process where it happens.
inline void allocate_stack(Context& c) {
    size_t page = size_t(sysconf(_SC_PAGESIZE));
    void* all = mmap(nullptr, page + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all, page, PROT_NONE) != 0) {
        fprintf(stderr, "no memory for the stack of an emulated thread\n");
        abort();
    }
    c.stack = static_cast<char*>(all) + page;
    c.stack_bytes = STACK_BYTES;
}

inline void free_stack(Context& c) {
    size_t page = size_t(sysconf(_SC_PAGESIZE));
    if (c.stack) munmap(c.stack - page, page + c.stack_bytes);
}

#ifndef ANYFLEET_UCONTEXT
#define ANYFLEET_TEXT_(x) #x
#define ANYFLEET_TEXT(x) ANYFLEET_TEXT_(x)
#define ANYFLEET_SWITCH ANYFLEET_TEXT(__USER_LABEL_PREFIX__) "anyfleet_switch"
#ifdef __ELF__
#define ANYFLEET_SWITCH_TYPE ".type anyfleet_switch, @function\n"
#else
#define ANYFLEET_SWITCH_TYPE
#endif
extern "C" __attribute__((visibility("hidden"))) void anyfleet_switch(void** from, void* to);

#ifdef __x86_64__
// A jump in place of `ret`: the processor's guess of where it returns to would be wrong each time.
asm(".text\n.p2align 4\n" ANYFLEET_SWITCH_TYPE ANYFLEET_SWITCH ":\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\n"
    "popq %rcx\njmpq *%rcx\n");
const size_t SAVED_WORDS = 6;
const size_t RETURN_WORD = 6;
const size_t FRAME_WORDS = 8;
#else
asm(".text\n.p2align 4\n" ANYFLEET_SWITCH_TYPE ANYFLEET_SWITCH ":\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n");
const size_t SAVED_WORDS = 11;
const size_t RETURN_WORD = 11;
const size_t FRAME_WORDS = 20;
#endif
#endif

// Makes the next switch to `c` call `entry`, which never returns. `colour` moves the frame: frames at one offset of
// their pages would share one set of the first cache.
inline void prepare(Context& c, void (*entry)(), size_t colour) {
#ifdef __SANITIZE_ADDRESS__
    // What an abandoned thread left behind.
    __asan_unpoison_memory_region(c.stack, c.stack_bytes);
    c.sanitizer = nullptr;
#endif
    size_t used = colour * 7 % 32 * 128;
#ifdef ANYFLEET_UCONTEXT
    getcontext(&c.at);
    c.at.uc_stack.ss_sp = c.stack;
    c.at.uc_stack.ss_size = c.stack_bytes - used;
    c.at.uc_link = nullptr;
    makecontext(&c.at, entry, 0);
#else
    uintptr_t* frame = reinterpret_cast<uintptr_t*>(c.stack + c.stack_bytes - used) - FRAME_WORDS;
    for (size_t i = 0; i < FRAME_WORDS; i++) frame[i] = 0;
    frame[RETURN_WORD] = reinterpret_cast<uintptr_t>(entry);
    c.at = frame;
#endif
}

// `last`: nobody will switch back to `from`.
inline void switch_to(Context& from, Context& to, bool last) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(last ? nullptr : &from.sanitizer, to.stack, to.stack_bytes);
#else
    (void)last;
#endif
#ifdef ANYFLEET_UCONTEXT
    swapcontext(&from.at, &to.at);
#else
    anyfleet_switch(&from.at, to.at);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from.sanitizer, nullptr, nullptr);
#endif
}

// First words of an entry. The launch's own stack is learnt from the first switch away from it.
inline void entered(Context& main) {
#ifdef __SANITIZE_ADDRESS__
    const void* stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
    if (!main.stack_bytes) {
        main.stack = static_cast<char*>(const_cast<void*>(stack));
        main.stack_bytes = bytes;
    }
#else
    (void)main;
#endif
}

}  // namespace emulate
