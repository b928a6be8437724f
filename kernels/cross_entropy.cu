// Softmax cross-entropy of a classifier and, in the same launch, its gradient.
//
//   loss = - sum over rows of weight * log softmax(logits)[label]  /  sum of the rows' weights
//
// or the sum alone, unless `mean`.
//
// With smoothing s the target is 1 - s for the label plus s / K for each of the K classes.
//
//   cross_entropy    warp -> one row, 8 rows a block; its lanes step over the classes 32 at a time;
//                    the last block to finish adds up the rows, in a fixed order
//   scale_gradient   thread -> LANES elements of dx, where the loss is not the end of the graph
//
//   logits    (rows, classes) of type X
//   labels    (rows) int64; one outside 0 .. classes - 1 makes the loss NaN
//   weights   (classes), or null: all 1
//   row_loss, row_weight   (rows)     scratch memory
//   counter   (1): 0 before and after
//   loss, total   (1): the mean or sum, and the sum of the rows' weights; written (=)
//   gradient  (rows, classes) of type GRADIENT, or null; written (=).  It is d loss / d logits, but
//             that of a mean with weights is not yet divided by total
//
// Blocks of 256 threads, at most 64 registers a thread: 32 warps per multiprocessor.
// Every classifier ends its forward pass with these kernels and begins its backward pass there.

#ifndef X
#define X float  // or half, bfloat16
#endif
#ifndef GRADIENT
#define GRADIENT float  // or X; float where dy scales a gradient that half could not hold
#endif

#include "splits.cuh"
#include "vector.cuh"

__device__ inline void one_row(const X* x, int64 label, const float* weights, float& row_loss,
                               float& row_weight, GRADIENT* gradient, int64 rows, int classes,
                               float smoothing, bool mean) {
    int lane = threadIdx.x % WARP;
    bool exists = label >= 0 && label < classes;
    float weight = exists && weights ? weights[label] : 1.0f;

    float largest = -infinity();
    for (int j = lane; j < classes; j += WARP) largest = fmaxf(largest, to_float(x[j]));
    largest = warp_max(largest);
    float sum = 0.0f, smooth = 0.0f, weight_sum = 0.0f;  // over all classes
    for (int j = lane; j < classes; j += WARP) {
        float w = weights ? weights[j] : 1.0f, away = to_float(x[j]) - largest;
        sum += expf(away);  // exp overflows beyond 88
        smooth += w * away;
        weight_sum += w;
    }
    sum = warp_sum(sum);
    smooth = warp_sum(smooth);
    weight_sum = warp_sum(weight_sum);
    float log_sum = logf(sum);

    if (lane == 0) {
        float hit = exists ? log_sum - (to_float(x[label]) - largest) : nan_value();
        float loss = (1.0f - smoothing) * weight * hit;
        // Guarded: 0 times this sum is NaN where a logit of -infinity masks a class.
        if (smoothing > 0.0f) loss += smoothing * ((log_sum * weight_sum - smooth) / classes);
        row_loss = loss;
        row_weight = weight;
    }
    if (!gradient) return;
    float each = (1.0f - smoothing) * weight + smoothing / classes * weight_sum;
    float share = weights || !mean ? 1.0f : 1.0f / (float)rows;
    for (int j = lane; j < classes; j += WARP) {
        float target = smoothing / classes * (weights ? weights[j] : 1.0f);
        if (j == label) target += (1.0f - smoothing) * weight;
        float d = expf(to_float(x[j]) - largest) / sum * each - target;
        gradient[j] = from_float<GRADIENT>(d * share);
    }
}

// A thread adds every 256th row, a warp its lanes, thread 0 the 8 warps.
__device__ inline void add_rows(const float* row_loss, const float* row_weight, float* loss,
                                float* total, int64 rows, bool mean) {
    __shared__ float losses[8], weights[8];
    float loss_sum = 0.0f, weight_sum = 0.0f;
    for (int64 row = threadIdx.x; row < rows; row += blockDim.x) {
        loss_sum += row_loss[row];
        weight_sum += row_weight[row];
    }
    loss_sum = warp_sum(loss_sum);
    weight_sum = warp_sum(weight_sum);
    if (threadIdx.x % WARP == 0) {
        losses[threadIdx.x / WARP] = loss_sum;
        weights[threadIdx.x / WARP] = weight_sum;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < 8; ++warp) {
        loss_sum += losses[warp];
        weight_sum += weights[warp];
    }
    *loss = mean ? loss_sum / weight_sum : loss_sum;
    *total = weight_sum;
}

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void cross_entropy(
    const X* logits, const int64* labels, const float* weights, float* row_loss, float* row_weight,
    unsigned* counter, float* loss, float* total, GRADIENT* gradient, int64 rows, int classes,
    float smoothing, int mean) {
    int64 row = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row < rows)
        one_row(logits + row * classes, labels[row], weights, row_loss[row], row_weight[row],
                gradient ? gradient + row * classes : nullptr, rows, classes, smoothing,
                mean);
    if (last_to_arrive(counter, gridDim.x)) add_rows(row_loss, row_weight, loss, total, rows, mean);
}

// dx = gradient * dy / total.  dy (1) is the gradient of the loss, null if that is 1; total is null
// if gradient is already divided by it.  NaN if all weights are 0, like the loss.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void scale_gradient(
    const GRADIENT* gradient, const float* dy, const float* total, X* dx, int64 size) {
    int64 first = global_thread() * LANES, left = size - first;
    if (left <= 0) return;
    float factor = dy ? *dy : 1.0f;
    if (total) factor = *total == 0.0f ? nan_value() : factor / *total;
    float d[LANES];
    load_up_to(gradient + first, left, d);
#pragma unroll
    for (float& value : d) value *= factor;
    store_up_to(dx + first, left, d);
}
