// Barriers, shuffles and votes.

#ifndef CUDASIM_WARP_H
#define CUDASIM_WARP_H

// The caller's position: default arguments are evaluated at the call.
#define CUDASIM_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(CUDASIM_HERE) {
    cudasim_barrier(0, {"__syncthreads", file, line});
}

static inline int __syncthreads_count(int predicate, CUDASIM_HERE) {
    return cudasim_barrier(predicate, {"__syncthreads_count", file, line});
}

static inline int __syncthreads_or(int predicate, CUDASIM_HERE) {
    return cudasim_barrier(predicate, {"__syncthreads_or", file, line}) != 0;
}

static inline int __syncthreads_and(int predicate, CUDASIM_HERE) {
    unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    return unsigned(cudasim_barrier(predicate, {"__syncthreads_and", file, line})) == threads;
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, CUDASIM_HERE) {
    cudasim_warp_sync(mask, nullptr, nullptr, nullptr, {"__syncwarp", file, line});
}

namespace cudasim {

template <class T>
struct Shuffle {
    T value, result;
    int source;  // the lane to read
};

template <class T>
CUDASIM_QUIET void combine_shuffle(void* const* lanes, void*) {
    for (int lane = 0; lane < 32; ++lane) {
        if (!lanes[lane]) continue;
        Shuffle<T>* mine = static_cast<Shuffle<T>*>(lanes[lane]);
        Shuffle<T>* other = static_cast<Shuffle<T>*>(lanes[mine->source]);
        if (other) mine->result = other->value;
        else memset(static_cast<void*>(&mine->result), 0x7f, sizeof(T));  // undefined in CUDA: a
    }                                                                     // large number or index
}

template <class T>
inline T shuffle(unsigned mask, T value, int source, CallSite site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2, "a shuffle moves numbers");
    Shuffle<T> mine = {value, value, source};
    cudasim_warp_sync(mask, &mine, combine_shuffle<T>, nullptr, site);
    return mine.result;
}

// Lanes are grouped by `width` (a power of two); the group of `lane` starts here.
inline int group_start(int lane, int width) { return lane & ~(width - 1); }

inline void check_width(int width, const char* what) {
    if (width < 1 || width > 32 || (width & (width - 1)))
        cudasim_fail("calls %s with width %d: expected a power of two up to 32", what, width);
}

struct Vote {
    int predicate;
    unsigned ballot;
};

inline CUDASIM_QUIET void combine_vote(void* const* lanes, void*) {
    unsigned ballot = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (lanes[lane] && static_cast<Vote*>(lanes[lane])->predicate) ballot |= 1u << lane;
    for (int lane = 0; lane < 32; ++lane)
        if (lanes[lane]) static_cast<Vote*>(lanes[lane])->ballot = ballot;
}

inline unsigned vote(unsigned mask, int predicate, CallSite site) {
    Vote mine = {predicate, 0};
    cudasim_warp_sync(mask, &mine, combine_vote, nullptr, site);
    return mine.ballot;
}

}  // namespace cudasim

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDASIM_HERE) {
    cudasim::check_width(width, "__shfl_sync");
    int start = cudasim::group_start(cudasim_lane, width);
    return cudasim::shuffle(mask, value, start + (source & (width - 1)),
                            {"__shfl_sync", file, line});
}

template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUDASIM_HERE) {
    cudasim::check_width(width, "__shfl_xor_sync");
    int lane = cudasim_lane, source = lane ^ bits;
    // A group may read from lower groups, not from higher ones.
    if (source >= cudasim::group_start(lane, width) + width) source = lane;
    return cudasim::shuffle(mask, value, source & 31, {"__shfl_xor_sync", file, line});
}

template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32,
                               CUDASIM_HERE) {
    cudasim::check_width(width, "__shfl_up_sync");
    int lane = cudasim_lane, source = lane - int(distance);
    if (source < cudasim::group_start(lane, width)) source = lane;
    return cudasim::shuffle(mask, value, source, {"__shfl_up_sync", file, line});
}

template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                                 CUDASIM_HERE) {
    cudasim::check_width(width, "__shfl_down_sync");
    int lane = cudasim_lane, source = lane + int(distance);
    if (source >= cudasim::group_start(lane, width) + width) source = lane;
    return cudasim::shuffle(mask, value, source, {"__shfl_down_sync", file, line});
}

static inline unsigned __ballot_sync(unsigned mask, int predicate, CUDASIM_HERE) {
    return cudasim::vote(mask, predicate, {"__ballot_sync", file, line});
}

static inline int __any_sync(unsigned mask, int predicate, CUDASIM_HERE) {
    return cudasim::vote(mask, predicate, {"__any_sync", file, line}) != 0;
}

static inline int __all_sync(unsigned mask, int predicate, CUDASIM_HERE) {
    return cudasim::vote(mask, !predicate, {"__all_sync", file, line}) == 0;
}

#endif
