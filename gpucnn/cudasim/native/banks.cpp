// Bank mode: detects bank conflicts in shared memory.
//
// Shared memory has 32 banks of 4 bytes; a bank serves one word at a time, to any number of lanes.
// An access takes as many passes ("ways") as the busiest bank has different words to serve.  Lanes
// are served 32 at a time for accesses of up to 4 bytes, 16 for 8 bytes, 8 for 16 bytes.
//
// The simulator runs lanes one after another, so it reconstructs a warp's simultaneous accesses: the
// n-th execution of an instruction since the last barrier is matched across lanes.  This is right
// where lanes iterate together, and wrong where some of them skip iterations.

#include <algorithm>

#include "worker.h"

namespace cudasim {
namespace {

constexpr int kBanks = 32, kWord = 4;

struct SharedAccess {
    char* code;
    int lane;
    unsigned offset, bytes;  // offset in the block's shared memory
};

struct Conflict {
    int ways;
    SharedAccess worst;  // one of the conflicting accesses
};

// The worst conflict among the accesses of one instruction; at[i] is lane i's, or null.
Conflict conflict(const SharedAccess* const (&at)[kWarp]) {
    unsigned bytes = 0;
    for (const SharedAccess* access : at)
        if (access && access->bytes > bytes) bytes = access->bytes;
    int together = bytes > 8 ? 8 : bytes > 4 ? 16 : 32;
    Conflict most = {0, {}};
    for (int first = 0; first < kWarp; first += together) {
        std::vector<unsigned> words[kBanks];  // different words that each bank has to serve
        for (int lane = first; lane < first + together; ++lane) {
            if (!at[lane]) continue;
            unsigned last = (at[lane]->offset + at[lane]->bytes - 1) / kWord;
            for (unsigned word = at[lane]->offset / kWord; word <= last; ++word) {
                std::vector<unsigned>& in_bank = words[word % kBanks];
                if (std::find(in_bank.begin(), in_bank.end(), word) == in_bank.end())
                    in_bank.push_back(word);
                if (int(in_bank.size()) > most.ways) most = {int(in_bank.size()), *at[lane]};
            }
        }
    }
    return most;
}

}  // namespace

struct BankLog {
    // By warp, since the last barrier; each lane's accesses are in order.
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
    // An access longer than 16 bytes is several instructions: give each a code address of its own.
    for (size_t at = 0; at < bytes; at += 16)
        log.push_back({static_cast<char*>(code) + at, thread->lane, unsigned(offset + at),
                       unsigned(std::min<size_t>(bytes - at, 16))});
}

// Called when all threads are at a barrier or have returned.  Ends the launch if an access took
// more passes than allowed.
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
            const SharedAccess* next[kWarp] = {};  // of this instruction, by lane
            int left[kWarp] = {};
            for (end = begin; end < all.size() && all[end].code == all[begin].code; ++end)
                if (left[all[end].lane]++ == 0) next[all[end].lane] = &all[end];
            for (;;) {
                const SharedAccess* at[kWarp] = {};
                bool any = false;
                for (int lane = 0; lane < kWarp; ++lane)
                    if (left[lane]-- > 0) at[lane] = next[lane]++, any = true;
                if (!any) break;
                Conflict found = conflict(at);
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
