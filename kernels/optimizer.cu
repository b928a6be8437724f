// One step of SGD or Adam for all parameters of a model, and the check of scaled gradients before it.
//
//   grid row y     parameter first + y
//   block          1024 elements at a time; the blocks of a row stride over the parameter together
//   thread         four consecutive elements, 16 bytes: parameter, gradient and states
//
//   p, velocity, mean, square   flat buffers of all parameters, updated in place.  Each parameter
//                   starts at a multiple of 16 elements; what is between two parameters is 0
//   copy            null, or a flat buffer of H: the new parameters in half precision, for the next
//                   forward pass
//   done            (parameters) uint64: blocks that have stepped the parameter, over all steps
//   starts, sizes   (parameters) int64: where each parameter starts in the flat buffers, its length
//   first           the parameter of grid row 0: a launch takes at most 16
//   g0 .. g15       the gradients of parameters first, first + 1, ..., each a separate array;
//                   null leaves the parameter unchanged
//   rates           null, or what replaces lr (and, for Adam, shrink): a captured step reads them
//                   from device memory, because they change from step to step
//   unscale         null, or (): gradients are multiplied by it, 1 / the loss scale; 0 skips the step
//   guard           (1) int32, or null: set to 1 by an update that is not finite, which is not
//                   written.  A host that does not wait for the step learns of it later, and finds
//                   finite parameters then
//
// Blocks of 256 threads, at most 64 registers a thread: 32 warps per multiprocessor.  The kernels
// are memory-bound: SGD moves 5 floats for 6 operations.  Blocks past the end of a small parameter
// return at once.

#include "elements.cuh"

#ifndef H
#define H half
#endif

constexpr int GRADIENTS = 16;  // per launch: AlexNet has 8 layers with a weight and a bias
constexpr int WIDTH = 4;       // elements of a thread

struct Gradients {
    const float* of[GRADIENTS];
};

// A chain of selects: a dynamically indexed array would be placed in slow local memory.
__device__ inline const float* pick(int row, const Gradients& gradients) {
    const float* found = nullptr;
#pragma unroll
    for (int i = 0; i < GRADIENTS; ++i)
        if (i == row) found = gradients.of[i];
    return found;
}

__device__ inline void load(float (&a)[WIDTH], const float* p) {
    float4 v = load4(p);
    a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
}

__device__ inline float4 packed(const float (&a)[WIDTH]) {
    return make_float4(a[0], a[1], a[2], a[3]);
}

// Elements i, i + 1, ... of a gradient of any alignment; 0 past its end.
__device__ inline void load_gradient(float (&g)[WIDTH], const float* gradient, int64 i,
                                     int64 size) {
    if (reinterpret_cast<uint64>(gradient) % sizeof(float4) == 0 && i + WIDTH <= size) {
        load(g, gradient + i);
        return;
    }
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) g[k] = i + k < size ? gradient[i + k] : 0.0f;
}

// Whether the guard refuses new values, because they are not all finite; sets it then.
__device__ inline bool refused(int* guard, bool finite) {
    if (!guard || finite) return false;
    atomicMax(guard, 1);
    return true;
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void sgd_step(
    float* p, float* velocity, H* copy, const int64* starts, const int64* sizes, int first,
    const float* g0, const float* g1, const float* g2, const float* g3, const float* g4,
    const float* g5, const float* g6, const float* g7, const float* g8, const float* g9,
    const float* g10, const float* g11, const float* g12, const float* g13, const float* g14,
    const float* g15, const float* rates, float lr, float momentum, float weight_decay,
    int nesterov, const float* unscale, int* guard) {
    const float* gradient = pick(blockIdx.y, Gradients{{g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10,
                                                        g11, g12, g13, g14, g15}});
    if (!gradient) return;
    if (rates) lr = rates[0];
    float factor = unscale ? *unscale : 1.0f;
    if (factor == 0 && !copy) return;
    int64 start = starts[first + blockIdx.y], size = sizes[first + blockIdx.y];
    for (int64 i = WIDTH * global_thread(); i < size; i += WIDTH * grid_threads()) {
        float value[WIDTH], speed[WIDTH], g[WIDTH];
        load(value, p + start + i);
        if (factor != 0) {
            load(speed, velocity + start + i);
            load_gradient(g, gradient, i, size);
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                float d = g[k] * factor + weight_decay * value[k];
                float v = momentum * speed[k] + d;
                float next = value[k] - lr * (nesterov ? d + momentum * v : v);
                if (refused(guard, isfinite(v) && isfinite(next))) continue;
                speed[k] = v;
                value[k] = next;
            }
            store4(velocity + start + i, packed(speed));
            store4(p + start + i, packed(value));
        }
        if (copy) store_four(copy + start + i, packed(value));  // of a skipped step too
    }
}

// Both moments start at zero, so the step corrects their bias: the rate is lr / (1 - beta1^t) and
// the square is divided by 1 - beta2^t, where t counts the parameter's own steps.  Every block of
// the parameter adds 1 to `done` and derives t from the old value, in whatever order blocks run:
//
//   done / gridDim.x   0 0 0 0 | 1 1 1 1 | 2 2 ...    4 blocks a step
//
// A skipped step does not count.  1 - beta^t is computed as -expm1(t log beta), and rest1 = 1 -
// beta1 and rest2 = 1 - beta2 come from Python, because float32 would keep only five digits of these
// differences.  shrink multiplies p: 1, or AdamW's 1 - lr * weight_decay.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void adam_step(
    float* p, float* mean, float* square, H* copy, uint64* done, const int64* starts,
    const int64* sizes, int first, const float* g0, const float* g1, const float* g2,
    const float* g3, const float* g4, const float* g5, const float* g6, const float* g7,
    const float* g8, const float* g9, const float* g10, const float* g11, const float* g12,
    const float* g13, const float* g14, const float* g15, const float* rates, float lr,
    float log_beta1, float log_beta2, float beta1, float beta2, float rest1, float rest2, float eps,
    float weight_decay, float shrink, const float* unscale, int* guard) {
    const float* gradient = pick(blockIdx.y, Gradients{{g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10,
                                                        g11, g12, g13, g14, g15}});
    if (!gradient) return;
    if (rates) lr = rates[0], shrink = rates[1];
    float factor = unscale ? *unscale : 1.0f;
    if (factor == 0 && !copy) return;
    __shared__ float rate, root;
    if (threadIdx.x == 0 && factor != 0) {
        float t = atomicAdd(&done[first + blockIdx.y], 1) / gridDim.x + 1;
        rate = lr / -expm1f(t * log_beta1);
        root = 1 / sqrtf(-expm1f(t * log_beta2));
    }
    __syncthreads();
    int64 start = starts[first + blockIdx.y], size = sizes[first + blockIdx.y];
    for (int64 i = WIDTH * global_thread(); i < size; i += WIDTH * grid_threads()) {
        float value[WIDTH], m[WIDTH], s[WIDTH], g[WIDTH];
        load(value, p + start + i);
        if (factor != 0) {
            load(m, mean + start + i);
            load(s, square + start + i);
            load_gradient(g, gradient, i, size);
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                float old = value[k] * shrink;
                float d = g[k] * factor + weight_decay * old;
                float new_mean = beta1 * m[k] + rest1 * d;
                float new_square = beta2 * s[k] + rest2 * d * d;
                float next = old - rate * new_mean / (sqrtf(new_square) * root + eps);
                bool finite = isfinite(new_mean) && isfinite(new_square) && isfinite(next);
                if (refused(guard, finite)) continue;
                m[k] = new_mean;
                s[k] = new_square;
                value[k] = next;
            }
            store4(mean + start + i, packed(m));
            store4(square + start + i, packed(s));
            store4(p + start + i, packed(value));
        }
        if (copy) store_four(copy + start + i, packed(value));
    }
}

// Look for infinities and NaN in the gradients of a scaled loss.  The last block to finish then
// decides about the step, and sets the scale of the next one.  Blocks are counted over all launches
// of a step.
//
//   scale    (3): the loss scale; what the optimizer multiplies this step's gradients by, 1 / scale
//            or 0; and the same for gradients that have been divided already: 1 or 0
//   state    (4) int32: good steps in a row; steps skipped; and, 0 between steps, whether a gradient
//            is not finite, and the blocks that have finished
//   blocks   of all launches of this step
//   guard    null, or set to 1 if the scale is `least` already: then the scale is not to blame
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void check_gradients(
    float* scale, int* state, const int64* sizes, int first, const float* g0, const float* g1,
    const float* g2, const float* g3, const float* g4, const float* g5, const float* g6,
    const float* g7, const float* g8, const float* g9, const float* g10, const float* g11,
    const float* g12, const float* g13, const float* g14, const float* g15, int blocks,
    float growth, float backoff, int interval, float least, int* guard) {
    const float* gradient = pick(blockIdx.y, Gradients{{g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10,
                                                        g11, g12, g13, g14, g15}});
    bool bad = false;
    int64 size = gradient ? sizes[first + blockIdx.y] : 0;
    for (int64 i = WIDTH * global_thread(); i < size; i += WIDTH * grid_threads()) {
        float g[WIDTH];
        load_gradient(g, gradient, i, size);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) bad |= !isfinite(g[k]);
    }
    bad = __syncthreads_or(bad);
    if (threadIdx.x != 0) return;
    if (bad) atomicOr(&state[2], 1);
    __threadfence();
    if (atomicAdd(&state[3], 1) != blocks - 1) return;
    __threadfence();
    bool overflow = atomicExch(&state[2], 0);
    atomicExch(&state[3], 0);
    float now = scale[0];
    scale[1] = overflow ? 0.0f : 1.0f / now;
    scale[2] = overflow ? 0.0f : 1.0f;
    if (overflow) {
        if (guard && now <= least) *guard = 1;
        scale[0] = fmaxf(now * backoff, least);
        state[0] = 0;
        state[1] += 1;
    } else if (++state[0] >= interval) {
        if (isfinite(now * growth)) scale[0] = now * growth;
        state[0] = 0;
    }
}
