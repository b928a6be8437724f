// Bank mode: in how many turns shared memory serves each access of a warp.
//
// Shared memory has 32 banks of 4 bytes; a bank hands out one word at a time, to any number of
// lanes.  An access takes as many turns ("ways") as the busiest bank is asked for different words.
// Lanes come 32 at a time for 4 bytes or fewer, 16 for 8 bytes, 8 for 16 bytes.
//
// Lanes run one after another here, so what a warp does at once is put together afterwards: the
// n-th time since the last barrier that each lane comes to one place in the code.  Lanes that go
// round a loop together are matched as on a GPU; where some of them skip turns they are not.

#include <algorithm>

#include "worker.h"

namespace cudasim {
namespace {

constexpr int kBanks = 32, kWord = 4;

struct SharedAccess {
    char* code;
    int lane;
    unsigned offset, bytes;  // in the block's shared memory
};

struct Turns {
    int ways;
    SharedAccess worst;  // one of those that wait for each other
};

// The turns that these accesses of one instruction take, of which lane i made at[i], or none.
Turns turns(const SharedAccess* const (&at)[kWarp]) {
    unsigned bytes = 0;
    for (const SharedAccess* access : at)
        if (access && access->bytes > bytes) bytes = access->bytes;
    int together = bytes > 8 ? 8 : bytes > 4 ? 16 : 32;
    Turns most = {0, {}};
    for (int first = 0; first < kWarp; first += together) {
        std::vector<unsigned> words[kBanks];  // that each bank is asked for
        for (int lane = first; lane < first + together; ++lane) {
            if (!at[lane]) continue;
            unsigned last = (at[lane]->offset + at[lane]->bytes - 1) / kWord;
            for (unsigned word = at[lane]->offset / kWord; word <= last; ++word) {
                std::vector<unsigned>& asked = words[word % kBanks];
                if (std::find(asked.begin(), asked.end(), word) == asked.end())
                    asked.push_back(word);
                if (int(asked.size()) > most.ways) most = {int(asked.size()), *at[lane]};
            }
        }
    }
    return most;
}

}  // namespace

struct BankLog {
    // Since the last barrier, each lane's in its order.
    std::vector<SharedAccess> accesses[kMaxWarps];
};

BankLog* start_bank_log() { return new BankLog; }

void finish_bank_log(BankLog* log) { delete log; }

void bank_new_block(Worker* worker) {
    for (std::vector<SharedAccess>& accesses : worker->launch->banks->accesses) accesses.clear();
}

void bank_access(Worker* worker, size_t offset, size_t bytes, void* code) {
    const Thread* thread = worker->current();
    std::vector<SharedAccess>& log = worker->launch->banks->accesses[thread->number / kWarp];
    // What is longer than any instruction's is several; a place of its own for each of them.
    for (size_t at = 0; at < bytes; at += 16)
        log.push_back({static_cast<char*>(code) + at, thread->lane, unsigned(offset + at),
                       unsigned(std::min<size_t>(bytes - at, 16))});
}

// All threads have met, or returned: ends the launch if an access took more turns than allowed.
void bank_check(Worker* worker) {
    BankLog* log = worker->launch->banks;
    int warps = (worker->thread_count + kWarp - 1) / kWarp, allowed = worker->launch->request->ways;
    for (int warp = 0; warp < warps; ++warp) {
        std::vector<SharedAccess>& all = log->accesses[warp];
        auto before = [](const SharedAccess& a, const SharedAccess& b) {
            return a.code != b.code ? a.code < b.code : a.lane < b.lane;
        };
        std::stable_sort(all.begin(), all.end(), before);
        for (size_t begin = 0, end; begin < all.size(); begin = end) {
            const SharedAccess* next[kWarp] = {};  // of this place in the code, by lane
            int left[kWarp] = {};
            for (end = begin; end < all.size() && all[end].code == all[begin].code; ++end)
                if (left[all[end].lane]++ == 0) next[all[end].lane] = &all[end];
            for (;;) {
                const SharedAccess* at[kWarp] = {};
                bool any = false;
                for (int lane = 0; lane < kWarp; ++lane)
                    if (left[lane]-- > 0) at[lane] = next[lane]++, any = true;
                if (!any) break;
                Turns found = turns(at);
                if (found.ways <= allowed) continue;
                worker->set_current(&worker->warps[warp].threads[found.worst.lane]);
                worker->fail("takes part in a " + std::to_string(found.ways) +
                             "-way bank conflict over " +
                             memory_name(worker, worker->shared + found.worst.offset) +
                             describe_code(worker, found.worst.code));
            }
        }
        all.clear();
    }
}

}  // namespace cudasim
