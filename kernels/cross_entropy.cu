// Softmax cross-entropy of a classifier and, in the same pass, its gradient.
//
//   loss = - sum over rows of weight * log softmax(logits)[label]  /  sum of the rows' weights
//
// With smoothing s the target is 1 - s for the label plus s / K for each of the K classes.
//
//   cross_entropy    warp -> one row, 8 rows a block; its lanes step over the classes 32 at a time
//   mean_of_rows     one block -> the mean, in a fixed order
//   scale_gradient   thread -> one element of dx
//
//   logits    (rows, classes)
//   labels    (rows) int64; one outside 0 .. classes - 1 makes the loss NaN
//   weights   (classes), or null: all 1
//   row_loss, row_weight   (rows)     written (=)
//   gradient  (rows, classes), or null: d (sum of row losses) / d logits, written (=)
//
// Blocks of 256 threads, at most 64 registers a thread: 32 warps per multiprocessor.
// Every classifier ends its forward pass with these kernels and begins its backward pass there.

#include "common.cuh"

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void cross_entropy(
    const float* logits, const int64* labels, const float* weights, float* row_loss,
    float* row_weight, float* gradient, int64 rows, int classes, float smoothing) {
    int64 row = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;  // whole warps return: warp_sum needs all lanes
    int lane = threadIdx.x % WARP;
    const float* x = logits + row * classes;
    int64 label = labels[row];
    bool exists = label >= 0 && label < classes;
    float weight = exists && weights ? weights[label] : 1.0f;

    float largest = -infinity();
    for (int j = lane; j < classes; j += WARP) largest = fmaxf(largest, x[j]);
    largest = warp_max(largest);
    float sum = 0.0f, smooth = 0.0f, weight_sum = 0.0f;  // over all classes
    for (int j = lane; j < classes; j += WARP) {
        float w = weights ? weights[j] : 1.0f;
        sum += expf(x[j] - largest);  // exp overflows beyond 88
        smooth += w * (x[j] - largest);
        weight_sum += w;
    }
    sum = warp_sum(sum);
    smooth = warp_sum(smooth);
    weight_sum = warp_sum(weight_sum);
    float log_sum = logf(sum);

    if (lane == 0) {
        float hit = exists ? log_sum - (x[label] - largest) : nan_value();
        float loss = (1.0f - smoothing) * weight * hit;
        // Guarded: 0 times this sum is NaN where a logit of -infinity masks a class.
        if (smoothing > 0.0f) loss += smoothing * ((log_sum * weight_sum - smooth) / classes);
        row_loss[row] = loss;
        row_weight[row] = weight;
    }
    if (!gradient) return;
    float each = (1.0f - smoothing) * weight + smoothing / classes * weight_sum;
    for (int j = lane; j < classes; j += WARP) {
        float target = smoothing / classes * (weights ? weights[j] : 1.0f);
        if (j == label) target += (1.0f - smoothing) * weight;
        gradient[row * classes + j] = expf(x[j] - largest) / sum * each - target;
    }
}

// loss = sum of row_loss / total, total = sum of row_weight; both (1), written (=).
// One block of 256 threads: a thread adds every 256th row, a warp its lanes, thread 0 the 8 warps.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void mean_of_rows(
    const float* row_loss, const float* row_weight, float* loss, float* total, int64 rows) {
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
    *loss = loss_sum / weight_sum;
    *total = weight_sum;
}

// dx = gradient * dy / total; dy (1) is the gradient of the loss, usually 1.
// NaN if all weights are 0, like the loss.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void scale_gradient(
    const float* gradient, const float* dy, const float* total, float* dx, int64 size) {
    int64 i = global_thread();
    if (i < size) dx[i] = gradient[i] * (*total == 0.0f ? nan_value() : *dy / *total);
}
