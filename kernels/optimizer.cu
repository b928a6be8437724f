// One step of SGD or Adam for all parameters of a model, in one launch.
//
//   block (x, y)   blocks x of row y walk over parameter y together, 256 numbers at a time
//   thread         one number at a time: its parameter, gradient and states
//
//   p, velocity, mean, square   flat buffers of all parameters; changed in place
//   starts, sizes   (parameters) int64: where each begins in the flat buffers, and its length
//   gradients       (parameters) int64: the address of each gradient, an array of its own; 0 where
//                   there is none, and the parameter then stays as it is
//
// Blocks of 256 threads with at most 64 registers: 32 warps to a multiprocessor.  These wait
// for memory alone, 5 numbers for SGD's 6 operations; the rows of small parameters end at once.

#include "common.cuh"

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void sgd_step(
    float* p, float* velocity, const int64* starts, const int64* sizes, const int64* gradients,
    float lr, float momentum, float weight_decay, int nesterov) {
    const float* gradient = (const float*)gradients[blockIdx.y];
    int64 start = starts[blockIdx.y], size = sizes[blockIdx.y];
    if (!gradient) return;
    for (int64 i = global_thread(); i < size; i += grid_threads()) {
        float g = gradient[i] + weight_decay * p[start + i];
        float v = momentum * velocity[start + i] + g;
        velocity[start + i] = v;
        p[start + i] -= lr * (nesterov ? g + momentum * v : v);
    }
}

// rate is lr / (1 - beta1^t) and root 1 / sqrt(1 - beta2^t): the corrections of moments that
// began at zero.  shrink multiplies p: 1, or AdamW's 1 - lr * weight_decay.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void adam_step(
    float* p, float* mean, float* square, const int64* starts, const int64* sizes,
    const int64* gradients, float rate, float root, float beta1, float beta2, float eps,
    float weight_decay, float shrink) {
    const float* gradient = (const float*)gradients[blockIdx.y];
    int64 start = starts[blockIdx.y], size = sizes[blockIdx.y];
    if (!gradient) return;
    for (int64 i = global_thread(); i < size; i += grid_threads()) {
        float old = p[start + i] * shrink;
        float g = gradient[i] + weight_decay * old;
        float m = beta1 * mean[start + i] + (1.0f - beta1) * g;
        float s = beta2 * square[start + i] + (1.0f - beta2) * g * g;
        mean[start + i] = m;
        square[start + i] = s;
        p[start + i] = old - rate * m / (sqrtf(s) * root + eps);
    }
}
