// Asynchronous copies.  They complete only when their group is waited for, as on a GPU with slow
// memory: a missing wait gives a wrong result every time.

#include <cstring>

#include "worker.h"

namespace cudasim {

// Performs the current thread's copies, except for the newest `groups_left` committed groups.
void Worker::complete_copies(int groups_left) {
    Thread* thread = current();
    size_t kept = 0;
    for (Copy& copy : thread->copies) {
        if (copy.group >= thread->group - groups_left) {
            thread->copies[kept++] = copy;
            continue;
        }
        if (launch->races) race_copy(this, copy, -1);
        check_copy(copy);
        memcpy(copy.to, copy.from, copy.from_bytes);
        memset(copy.to + copy.from_bytes, 0, copy.bytes - copy.from_bytes);
    }
    thread->copies.resize(kept);
}

// Checks a copy's accesses; called when it starts and when it completes.
void Worker::check_copy(const Copy& copy) {
    if (!launch->request->checks) return;
    if (copy.from_bytes) check_access(this, copy.from, copy.from_bytes, false, false, copy.code);
    check_access(this, copy.to, copy.bytes, true, false, copy.code);
}

void Worker::begin_copy(Copy copy) {
    check_copy(copy);
    current()->copies.push_back(copy);
    if (launch->races) race_copy(this, copy, 1);
}

}  // namespace cudasim

using namespace cudasim;

void cudasim_copy_async(void* to, const void* from, int bytes, int from_bytes) {
    uintptr_t misaligned = (reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes;
    if (misaligned)
        cudasim_fail("calls copy_async: both addresses must be multiples of %d bytes", bytes);
    if (from_bytes < 0 || from_bytes > bytes)
        cudasim_fail("calls copy_async with %d bytes of source for %d bytes", from_bytes, bytes);
    this_worker->begin_copy({static_cast<char*>(to), static_cast<const char*>(from), bytes,
                             from_bytes, this_worker->current()->group,
                             __builtin_return_address(0)});
}

void cudasim_copy_commit() { ++this_worker->current()->group; }

void cudasim_copy_wait(int groups_left) { this_worker->complete_copies(groups_left); }
