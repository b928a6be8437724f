// One step of SGD or Adam for all parameters of a model.
//
//   grid row y     parameter first + y
//   block          256 elements at a time; the blocks of a row stride over the parameter together
//   thread         one element at a time: parameter, gradient and states
//
//   p, velocity, mean, square   flat buffers of all parameters, updated in place
//   done            (parameters) uint64: blocks that have stepped the parameter, over all steps
//   starts, sizes   (parameters) int64: where each parameter starts in the flat buffers, its length
//   first           the parameter of grid row 0: a launch takes at most 16
//   g0 .. g15       the gradients of parameters first, first + 1, ..., each a separate array;
//                   null leaves the parameter unchanged
//
// Blocks of 256 threads, at most 64 registers a thread: 32 warps per multiprocessor.  The kernels
// are memory-bound: SGD moves 5 floats for 6 operations.  Blocks past the end of a small parameter
// return at once.

#include "common.cuh"

constexpr int GRADIENTS = 16;  // per launch: AlexNet has 8 layers with a weight and a bias

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

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void sgd_step(
    float* p, float* velocity, const int64* starts, const int64* sizes, int first, const float* g0,
    const float* g1, const float* g2, const float* g3, const float* g4, const float* g5,
    const float* g6, const float* g7, const float* g8, const float* g9, const float* g10,
    const float* g11, const float* g12, const float* g13, const float* g14, const float* g15,
    float lr, float momentum, float weight_decay, int nesterov) {
    const float* gradient = pick(blockIdx.y, Gradients{{g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10,
                                                        g11, g12, g13, g14, g15}});
    if (!gradient) return;
    int64 start = starts[first + blockIdx.y], size = sizes[first + blockIdx.y];
    for (int64 i = global_thread(); i < size; i += grid_threads()) {
        float g = gradient[i] + weight_decay * p[start + i];
        float v = momentum * velocity[start + i] + g;
        velocity[start + i] = v;
        p[start + i] -= lr * (nesterov ? g + momentum * v : v);
    }
}

// Both moments start at zero, so the step corrects their bias: the rate is lr / (1 - beta1^t) and
// the square is divided by 1 - beta2^t, where t counts the parameter's own steps.  Every block of
// the parameter adds 1 to `done` and derives t from the old value, in whatever order blocks run:
//
//   done / gridDim.x   0 0 0 0 | 1 1 1 1 | 2 2 ...    4 blocks a step
//
// 1 - beta^t is computed as -expm1(t log beta), and rest1 = 1 - beta1 and rest2 = 1 - beta2 come
// from Python, because float32 would keep only five digits of these differences.  shrink multiplies
// p: 1, or AdamW's 1 - lr * weight_decay.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void adam_step(
    float* p, float* mean, float* square, uint64* done, const int64* starts, const int64* sizes,
    int first, const float* g0, const float* g1, const float* g2, const float* g3, const float* g4,
    const float* g5, const float* g6, const float* g7, const float* g8, const float* g9,
    const float* g10, const float* g11, const float* g12, const float* g13, const float* g14,
    const float* g15, float lr, float log_beta1, float log_beta2, float beta1, float beta2,
    float rest1, float rest2, float eps, float weight_decay, float shrink) {
    const float* gradient = pick(blockIdx.y, Gradients{{g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10,
                                                        g11, g12, g13, g14, g15}});
    if (!gradient) return;
    __shared__ float rate, root;
    if (threadIdx.x == 0) {
        float t = atomicAdd(&done[first + blockIdx.y], 1) / gridDim.x + 1;
        rate = lr / -expm1f(t * log_beta1);
        root = 1 / sqrtf(-expm1f(t * log_beta2));
    }
    __syncthreads();
    int64 start = starts[first + blockIdx.y], size = sizes[first + blockIdx.y];
    for (int64 i = global_thread(); i < size; i += grid_threads()) {
        float old = p[start + i] * shrink;
        float g = gradient[i] + weight_decay * old;
        float m = beta1 * mean[start + i] + rest1 * g;
        float s = beta2 * square[start + i] + rest2 * g * g;
        mean[start + i] = m;
        square[start + i] = s;
        p[start + i] = old - rate * m / (sqrtf(s) * root + eps);
    }
}
