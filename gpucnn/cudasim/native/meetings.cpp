// Where threads wait for each other: barriers of the block, meetings of lanes of a warp.

#include <cstdio>
#include <cstring>

#include "worker.h"

namespace cudasim {
namespace {

std::string where(Place place) {
    return std::string(place.what) + " at " + place.file + ":" + std::to_string(place.line);
}

bool same(Place a, Place b) {
    auto equal = [](const char* x, const char* y) { return x == y || !strcmp(x, y); };
    return a.line == b.line && equal(a.what, b.what) && equal(a.file, b.file);
}

std::string hexadecimal(unsigned mask) {
    char digits[16];
    snprintf(digits, sizeof digits, "0x%08x", mask);
    return digits;
}

}  // namespace

int Worker::barrier(int predicate, Place place) {
    end_if_interrupted();
    Thread* thread = current();
    if (arrived == 0) {
        barrier_place = place;
        predicates = 0;
    } else if (!same(place, barrier_place)) {
        fail("waits in " + where(place) + ", but other threads of the block wait in " +
             where(barrier_place) + ": all must meet in the same one");
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
    wait(thread, place);
    return barrier_result;
}

void Worker::meet(unsigned mask, void* mine, Combine combine, void* extra, Place place) {
    end_if_interrupted();
    Thread* thread = current();
    Warp* warp = thread->warp;
    unsigned me = 1u << thread->lane;
    if (!(mask & me))
        fail("calls " + where(place) + " with mask " + hexadecimal(mask) +
             ", which leaves out its own lane " + std::to_string(thread->lane));
    if (mask & warp->returned)
        fail("calls " + where(place) + " with mask " + hexadecimal(mask) + ", and " +
             describe(&warp->threads[__builtin_ctz(mask & warp->returned)]) +
             ", which it names, has returned");
    int index = 0;
    while (index < warp->meeting_count && !(warp->meetings[index].mask & mask)) ++index;
    Meeting& meeting = warp->meetings[index];
    if (index == warp->meeting_count) {
        ++warp->meeting_count;
        meeting.mask = mask;
        meeting.arrived = 0;
        meeting.place = place;
        meeting.combine = combine;
        meeting.extra = extra;
        memset(meeting.lanes, 0, sizeof meeting.lanes);
    } else if (meeting.mask != mask) {
        fail("calls " + where(place) + " with mask " + hexadecimal(mask) +
             ", but other lanes of its warp wait in " + where(meeting.place) + " with mask " +
             hexadecimal(meeting.mask));
    } else if (!same(place, meeting.place) && (combine || meeting.combine)) {
        // __syncwarp, which combines nothing, may be called from several places.
        fail("calls " + where(place) + ", but other lanes of its warp wait in " +
             where(meeting.place));
    }
    meeting.arrived |= me;
    meeting.lanes[thread->lane] = mine;
    set_waiting(thread);
    if (meeting.arrived == (mask & warp->lanes)) hold_meeting(warp, index);
    wait(thread, place);
}

// Every lane has come: what was to be done together is done.
void Worker::hold_meeting(Warp* warp, int index) {
    Meeting& meeting = warp->meetings[index];
    if (meeting.combine) meeting.combine(meeting.lanes, meeting.extra);
    if (launch->races && !meeting.combine) race_warp_sync(this, warp, meeting.arrived);
    warp->ready |= meeting.arrived;
    ready_warps |= 1u << (warp->threads->number / kWarp);
    int last = --warp->meeting_count;
    if (index != last) meeting = warp->meetings[last];
}

// The current thread has returned, and other lanes wait for it.
void Worker::left_out(Warp* warp, const Meeting& meeting) {
    Thread* returned = current();
    set_current(&warp->threads[__builtin_ctz(meeting.arrived)]);
    fail("waits forever in " + where(meeting.place) + " with mask " + hexadecimal(meeting.mask) +
         ": " + describe(returned) + ", which it names, has returned");
}

void Worker::stuck() {
    Thread* waits = nullptr;
    for (int i = 0; i < thread_count && !waits; ++i)
        if (!threads[i].done) waits = &threads[i];
    std::string message = "waits forever in " + where(waits->waits) + ": ";
    bool barrier = !strncmp(waits->waits.what, "__syncthreads", 13);
    for (int i = 0; i < thread_count; ++i) {
        Thread& other = threads[i];
        if (!barrier && other.warp != waits->warp) continue;
        if (other.done)
            message += describe(&other) + " has returned";
        else if (other.waits.what && !same(other.waits, waits->waits))
            message += describe(&other) + " waits in " + where(other.waits);
        else
            continue;
        break;
    }
    set_current(waits);
    fail(message);
}

}  // namespace cudasim

using namespace cudasim;

int cudasim_barrier(int predicate, Place place) { return this_worker->barrier(predicate, place); }

void cudasim_meet(unsigned mask, void* mine, Combine combine, void* extra, Place place) {
    this_worker->meet(mask, mine, combine, extra, place);
}
