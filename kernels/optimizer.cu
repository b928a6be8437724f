// One step of SGD or Adam for all parameters of a model, in one launch.
//
//   block (x, y)   blocks x of row y walk over parameter y together, 256 numbers at a time
//   thread         one number at a time: its parameter, gradient and states
//
//   p, velocity, mean, square   flat buffers of all parameters; changed in place
//   done            (parameters) uint64: how many blocks have stepped each, over all steps
//   starts, sizes   (parameters) int64: where each begins in the flat buffers, and its length
//   first           the parameter of row 0: a launch takes 16 at most
//   g0 .. g15       the gradients of parameters first, first + 1, ..., each an array of its own;
//                   null where there is none, and the parameter then stays as it is
//
// Blocks of 256 threads with at most 64 registers: 32 warps to a multiprocessor.  These wait
// for memory alone, 5 numbers for SGD's 6 operations; the rows of small parameters end at once.

#include "common.cuh"

constexpr int GRADIENTS = 16;  // AlexNet has 8 layers of a filter and a bias: one launch

struct Gradients {
    const float* of[GRADIENTS];
};

// Written as a chain of selections: an array that is indexed would live in slow local memory.
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

// Both moments began at zero, and the step is corrected for it: its rate is lr / (1 - beta1^t), and
// 1 - beta2^t divides the square, t counting the parameter's own steps.  Every block of the
// parameter adds 1 to `done`, so that t can be told from what it finds there, whichever comes first:
//
//   done / gridDim.x   0 0 0 0 | 1 1 1 1 | 2 2 ...    4 blocks a step
//
// 1 - beta^t is -expm1(t log beta), and rest1 and rest2, which are 1 - beta1 and 1 - beta2, come
// from Python: float32 would keep five digits of such differences.  shrink multiplies p: 1, or
// AdamW's 1 - lr * weight_decay.
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
