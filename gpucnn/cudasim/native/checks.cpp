// The checked modes.  Kernels are compiled with -fsanitize=thread and a few of the undefined-behaviour
// sanitizers, which insert calls at each memory access and each violation.  This file implements
// the functions that they call, in place of the compiler's libraries, which do not know about
// blocks and threads.

#include <dlfcn.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "worker.h"

namespace cudasim {
namespace {

struct SharedVariable {
    const size_t* module;  // address of the module's counter, which identifies the module
    size_t offset, bytes;
    const char* name;
};

std::mutex shared_mutex;
std::vector<SharedVariable> shared_variables;

std::string verb(bool write, bool atomic) {
    return atomic ? "updates" : write ? "writes" : "reads";
}

// An offset into the module's library; Python turns it into file and line.
std::string code_text(Worker* worker, void* code) {
    Dl_info module;
    if (!code || !dladdr(reinterpret_cast<void*>(worker->launch->request->entry), &module)) return "";
    char text[40];
    snprintf(text, sizeof text, " <code %#zx>",
             size_t(static_cast<char*>(code) - static_cast<char*>(module.dli_fbase)));
    return text;
}

bool in_module(Worker* worker, const char* address) {  // __constant__ tables, literals
    Dl_info mine, other;
    return dladdr(const_cast<char*>(address), &other) &&
           dladdr(reinterpret_cast<void*>(worker->launch->request->entry), &mine) &&
           mine.dli_fbase == other.dli_fbase;
}

template <class T>
bool inside(const char* address, const T& variable) {
    const char* start = reinterpret_cast<const char*>(&variable);
    return address >= start && address < start + sizeof variable;
}

bool is_builtin(const char* address) {
    return inside(address, threadIdx) || inside(address, blockIdx) || inside(address, blockDim) ||
           inside(address, gridDim) || inside(address, cudasim_lane) ||
           inside(address, cudasim_shared);
}

std::string elements(const Range& range) {
    size_t count = (range.end - range.begin) / range.item;
    return std::string(range.name) + ", which has " + std::to_string(count) + " elements";
}

// Describes an address outside all arrays by its distance from the nearest one.
std::string describe_outside(const Request* request, const char* address) {
    if (reinterpret_cast<uintptr_t>(address) < 65536) return "through a null pointer";
    const Range* nearest = nullptr;
    size_t least = 1 << 20;
    for (int i = 0; i < request->range_count; ++i) {
        const Range& range = request->ranges[i];
        size_t distance = address < range.begin ? range.begin - address : address - range.end;
        if (distance < least) least = distance, nearest = &range;
    }
    if (!nearest) return "at an address far from every argument";
    long long index = (address - nearest->begin) / nearest->item;
    if (address < nearest->begin) index = -((nearest->begin - address - 1) / nearest->item + 1);
    return "at element " + std::to_string(index) + " of " + elements(*nearest);
}

bool has_poison(const char* address, size_t bytes) {
    if (bytes < 4) return false;  // 0x7fff is a legitimate 16-bit number
    for (size_t at = 0; at + 4 <= bytes; at += 4) {
        unsigned word;
        memcpy(&word, address + at, 4);
        if (word == kPoison) return true;
    }
    return false;
}

// The variable that contains a byte of shared memory, or null.
const SharedVariable* variable_at(const Request* request, size_t offset) {
    for (const SharedVariable& variable : shared_variables)
        if (variable.module == request->static_shared && offset >= variable.offset &&
            offset < variable.offset + variable.bytes)
            return &variable;
    return nullptr;
}

bool inside_shared(const Request* request, size_t offset, size_t bytes) {
    if (offset < kDynamicShared) return offset + bytes <= request->dynamic_shared;
    const SharedVariable* variable = variable_at(request, offset);
    return variable && offset + bytes <= variable->offset + variable->bytes;
}

}  // namespace

std::string memory_name(Worker* worker, const char* address) {
    const Request* request = worker->launch->request;
    size_t offset = address - worker->shared;
    if (offset < kDynamicShared)
        return "byte " + std::to_string(offset) + " of the dynamic shared memory, which has " +
               std::to_string(request->dynamic_shared);
    if (offset < kDynamicShared + kStaticShared) {
        if (const SharedVariable* variable = variable_at(request, offset))
            return "byte " + std::to_string(offset - variable->offset) + " of shared " + variable->name;
        const SharedVariable* before = nullptr;
        for (const SharedVariable& variable : shared_variables)
            if (variable.module == request->static_shared && variable.offset <= offset &&
                (!before || variable.offset > before->offset))
                before = &variable;
        return before ? "byte " + std::to_string(offset - before->offset) + " of shared " +
                            before->name + ", which has " + std::to_string(before->bytes)
                      : "shared memory before the first variable";
    }
    for (int i = 0; i < request->range_count; ++i) {
        const Range& range = request->ranges[i];
        if (address >= range.begin && address < range.end)
            return "element " + std::to_string((address - range.begin) / range.item) + " of " +
                   range.name;
    }
    return "memory";
}

void check_access(Worker* worker, const char* address, size_t bytes, bool write, bool atomic,
                  void* code) {
    if (!worker->current()) return;
    worker->end_if_interrupted();
    if (worker->on_a_stack(address)) return;
    const Request* request = worker->launch->request;
    size_t offset = address - worker->shared;
    bool shared = offset < kDynamicShared + kStaticShared;
    if (shared) {
        if (!inside_shared(request, offset, bytes))
            worker->fail(verb(write, atomic) + " " + std::to_string(bytes) + " bytes at " +
                         memory_name(worker, address) + code_text(worker, code));
    } else {
        const Range* found = nullptr;
        for (int i = 0; i < request->range_count && !found; ++i)
            if (address >= request->ranges[i].begin && address < request->ranges[i].end)
                found = &request->ranges[i];
        if (!found) {
            if (is_builtin(address) || in_module(worker, address)) return;
            worker->fail(verb(write, atomic) + " " + std::to_string(bytes) + " bytes " +
                         describe_outside(request, address) + code_text(worker, code));
        }
        if (address + bytes > found->end)
            worker->fail(verb(write, atomic) + " " + std::to_string(bytes) + " bytes across the end of " +
                         elements(*found) + code_text(worker, code));
        if (write && !found->writable)
            worker->fail("writes element " + std::to_string((address - found->begin) / found->item) +
                         " of " + found->name + ", which the kernel declares const" + code_text(worker, code));
    }
    if ((!write || atomic) && request->checks & kAddress && has_poison(address, bytes))
        worker->fail(verb(write, atomic) + " " + memory_name(worker, address) +
                     ", which nothing has written" + code_text(worker, code));
    if (worker->launch->banks && shared) bank_access(worker, offset, bytes, code);
    if (worker->launch->races) race_access(worker, address, bytes, write, atomic, code);
}

std::string describe_code(Worker* worker, void* code) { return code_text(worker, code); }

}  // namespace cudasim

using namespace cudasim;

void cudasim_touch(const void* address, size_t bytes, int write, int atomic) {
    if (this_worker->launch->request->checks)
        check_access(this_worker, static_cast<const char*>(address), bytes, write, atomic,
                     __builtin_return_address(0));
}

void cudasim_fence() {
    if (this_worker->launch->races) race_fence(this_worker);
}

// Called from the initialiser of a static variable.  Failing here would leave that variable half
// initialised, and the next launch would wait for it.  The kernel therefore checks the result and
// fails afterwards, in cudasim_no_shared.
size_t cudasim_reserve_shared(size_t* used, size_t bytes, size_t alignment, const char* name) {
    std::lock_guard<std::mutex> lock(shared_mutex);
    bool checks = this_worker->launch->request->checks;
    // Checked modes: far from its neighbours, and no better aligned than declared, so that vector
    // accesses that need more are detected.  Otherwise: on its own cache lines.
    size_t step = checks ? 2 * alignment : alignment < 64 ? 64 : alignment;
    size_t at = (*used + (checks ? 256 : 0) + step - 1) / step * step + (checks ? alignment : 0);
    if (bytes > kStaticLimit || at + bytes > kStaticShared) return ~size_t(0);
    *used = at + bytes;
    shared_variables.push_back({used, kDynamicShared + at, bytes, name});
    return kDynamicShared + at;
}

void cudasim_no_shared(size_t bytes, const char* name) {
    if (bytes > kStaticLimit)
        cudasim_fail("declares %zu bytes of shared memory (%s); 48 KB is the limit for static "
                     "variables, the rest must be dynamic", bytes, name);
    cudasim_fail("is in a module whose kernels declare more than %zu bytes of shared memory",
                 kStaticShared);
}

// --- what -fsanitize=thread calls ---

#define CUDASIM_ACCESS(NAME, BYTES, WRITE)                                                    \
    CUDASIM_EXPORT void NAME(void* address) {                                                 \
        check_access(this_worker, static_cast<char*>(address), BYTES, WRITE, false,           \
                     __builtin_return_address(0));                                            \
    }
#define CUDASIM_ACCESSES(BYTES)                                                               \
    CUDASIM_ACCESS(__tsan_read##BYTES, BYTES, false)                                          \
    CUDASIM_ACCESS(__tsan_write##BYTES, BYTES, true)                                          \
    CUDASIM_ACCESS(__tsan_unaligned_read##BYTES, BYTES, false)                                \
    CUDASIM_ACCESS(__tsan_unaligned_write##BYTES, BYTES, true)
CUDASIM_ACCESSES(1)
CUDASIM_ACCESSES(2)
CUDASIM_ACCESSES(4)
CUDASIM_ACCESSES(8)
CUDASIM_ACCESSES(16)

CUDASIM_EXPORT void __tsan_read_range(void* address, size_t bytes) {
    check_access(this_worker, static_cast<char*>(address), bytes, false, false,
                 __builtin_return_address(0));
}
CUDASIM_EXPORT void __tsan_write_range(void* address, size_t bytes) {
    check_access(this_worker, static_cast<char*>(address), bytes, true, false,
                 __builtin_return_address(0));
}
CUDASIM_EXPORT void __tsan_init() {}
CUDASIM_EXPORT void __tsan_func_entry(void*) {}
CUDASIM_EXPORT void __tsan_func_exit() {}
CUDASIM_EXPORT void __tsan_atomic_thread_fence(int) {}

// --- what -fsanitize=bounds,alignment,... calls ---

struct SourceLocation {
    const char* file;
    uint32_t line, column;
};

struct TypeMismatch {
    SourceLocation at;
    const void* type;
    unsigned char log_alignment, kind;
};

[[noreturn]] static void fail_rule(const void* data, const char* rule) {
    const SourceLocation* at = static_cast<const SourceLocation*>(data);
    cudasim_fail("%s at %s:%u", rule, at->file, at->line);
}

CUDASIM_EXPORT void __ubsan_handle_out_of_bounds(void* data, size_t index) {
    const SourceLocation* at = static_cast<const SourceLocation*>(data);
    cudasim_fail("uses index %td, which is out of bounds, at %s:%u", ptrdiff_t(index),
                 at->file, at->line);
}
CUDASIM_EXPORT void __ubsan_handle_type_mismatch_v1(void* data, uintptr_t address) {
    const TypeMismatch* mismatch = static_cast<const TypeMismatch*>(data);
    const SourceLocation& at = mismatch->at;
    if (!address) cudasim_fail("uses a null pointer at %s:%u", at.file, at.line);
    cudasim_fail("uses misaligned address %#zx: its type needs a multiple of %d bytes, "
                 "at %s:%u", size_t(address), 1 << mismatch->log_alignment, at.file, at.line);
}
CUDASIM_EXPORT void __ubsan_handle_divrem_overflow(void* data, void*, void*) {
    fail_rule(data, "divides by zero");
}
CUDASIM_EXPORT void __ubsan_handle_shift_out_of_bounds(void* data, void*, void*) {
    fail_rule(data, "shifts by too many bits, or a negative number,");
}
CUDASIM_EXPORT void __ubsan_handle_add_overflow(void* data, void*, void*) {
    fail_rule(data, "overflows a signed integer by adding");
}
CUDASIM_EXPORT void __ubsan_handle_sub_overflow(void* data, void*, void*) {
    fail_rule(data, "overflows a signed integer by subtracting");
}
CUDASIM_EXPORT void __ubsan_handle_mul_overflow(void* data, void*, void*) {
    fail_rule(data, "overflows a signed integer by multiplying");
}
CUDASIM_EXPORT void __ubsan_handle_negate_overflow(void* data, void*) {
    fail_rule(data, "negates the most negative integer");
}
