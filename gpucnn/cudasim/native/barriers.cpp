// Where threads wait for each other: barriers of a block and synchronization within a warp.

#include <cstdio>
#include <cstring>

#include "worker.h"

namespace cudasim {
namespace {

std::string where(CallSite site) {
    return std::string(site.what) + " at " + site.file + ":" + std::to_string(site.line);
}

bool same(CallSite a, CallSite b) {
    auto equal = [](const char* x, const char* y) { return x == y || !strcmp(x, y); };
    return a.line == b.line && equal(a.what, b.what) && equal(a.file, b.file);
}

std::string hexadecimal(unsigned mask) {
    char digits[16];
    snprintf(digits, sizeof digits, "0x%08x", mask);
    return digits;
}

}  // namespace

int Worker::barrier(int predicate, CallSite site) {
    end_if_interrupted();
    Thread* thread = current();
    if (arrived == 0) {
        barrier_site = site;
        predicates = 0;
    } else if (!same(site, barrier_site)) {
        fail("waits in " + where(site) + ", but other threads of the block wait in " +
             where(barrier_site) + ": all threads must reach the same one");
    }
    predicates += predicate != 0;
    set_waiting(thread);
    if (++arrived == thread_count) {
        if (launch->banks) bank_check(this);
        arrived = 0;
        barrier_result = predicates;
        ++epoch;
        for (int i = 0, left = thread_count; left > 0; ++i, left -= kWarp) {
            warps[i].ready = warps[i].lanes;
            ready_warps |= 1u << i;
        }
    }
    wait(thread, site);
    return barrier_result;
}

void Worker::warp_sync(unsigned mask, void* mine, Combine combine, void* extra, CallSite site) {
    end_if_interrupted();
    Thread* thread = current();
    Warp* warp = thread->warp;
    unsigned me = 1u << thread->lane;
    if (!(mask & me))
        fail("calls " + where(site) + " with mask " + hexadecimal(mask) +
             ", which omits its own lane " + std::to_string(thread->lane));
    if (mask & warp->returned)
        fail("calls " + where(site) + " with mask " + hexadecimal(mask) + ", and " +
             describe(&warp->threads[__builtin_ctz(mask & warp->returned)]) +
             ", which the mask names, has returned");
    int index = 0;
    while (index < warp->sync_count && !(warp->syncs[index].mask & mask)) ++index;
    WarpSync& sync = warp->syncs[index];
    if (index == warp->sync_count) {
        ++warp->sync_count;
        sync.mask = mask;
        sync.arrived = 0;
        sync.site = site;
        sync.combine = combine;
        sync.extra = extra;
        memset(sync.lanes, 0, sizeof sync.lanes);
    } else if (sync.mask != mask) {
        fail("calls " + where(site) + " with mask " + hexadecimal(mask) +
             ", but other lanes of its warp wait in " + where(sync.site) + " with mask " +
             hexadecimal(sync.mask));
    } else if (!same(site, sync.site) && (combine || sync.combine)) {
        // __syncwarp combines nothing and may be called from different lines.
        fail("calls " + where(site) + ", but other lanes of its warp wait in " +
             where(sync.site));
    }
    sync.arrived |= me;
    sync.lanes[thread->lane] = mine;
    set_waiting(thread);
    if (sync.arrived == (mask & warp->lanes)) complete_sync(warp, index);
    wait(thread, site);
}

// All lanes have arrived: computes the result and makes them ready.
void Worker::complete_sync(Warp* warp, int index) {
    WarpSync& sync = warp->syncs[index];
    if (sync.combine) sync.combine(sync.lanes, sync.extra);
    if (launch->races && !sync.combine) race_warp_sync(this, warp, sync.arrived);
    warp->ready |= sync.arrived;
    ready_warps |= 1u << (warp->threads->number / kWarp);
    int last = --warp->sync_count;
    if (index != last) sync = warp->syncs[last];
}

// The current thread has returned while other lanes wait for it.
void Worker::fail_missing_lane(Warp* warp, const WarpSync& sync) {
    Thread* returned = current();
    set_current(&warp->threads[__builtin_ctz(sync.arrived)]);
    fail("waits forever in " + where(sync.site) + " with mask " + hexadecimal(sync.mask) +
         ": " + describe(returned) + ", which the mask names, has returned");
}

void Worker::fail_deadlock() {
    Thread* waiting = nullptr;
    for (int i = 0; i < thread_count && !waiting; ++i)
        if (!threads[i].done) waiting = &threads[i];
    std::string message = "waits forever in " + where(waiting->waiting_at) + ": ";
    bool barrier = !strncmp(waiting->waiting_at.what, "__syncthreads", 13);
    for (int i = 0; i < thread_count; ++i) {
        Thread& other = threads[i];
        if (!barrier && other.warp != waiting->warp) continue;
        if (other.done)
            message += describe(&other) + " has returned";
        else if (other.waiting_at.what && !same(other.waiting_at, waiting->waiting_at))
            message += describe(&other) + " waits in " + where(other.waiting_at);
        else
            continue;
        break;
    }
    set_current(waiting);
    fail(message);
}

}  // namespace cudasim

using namespace cudasim;

int cudasim_barrier(int predicate, CallSite site) { return this_worker->barrier(predicate, site); }

void cudasim_warp_sync(unsigned mask, void* mine, Combine combine, void* extra, CallSite site) {
    this_worker->warp_sync(mask, mine, combine, extra, site);
}
