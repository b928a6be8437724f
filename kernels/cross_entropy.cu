// The loss of a classifier and, in the same pass, its gradient.
//
//   loss = - sum over rows of weight * log softmax(logits)[label]  /  sum of the rows' weights
//
// With smoothing s the target is 1 - s for the label plus s / K for each of the K classes.
//
//   cross_entropy   warp -> one row, 8 rows a block; lanes go over the classes 32 at a time
//   mean_of_rows            one block: the mean, in an order that does not depend on timing
//   scale_gradient          thread -> one number of dx
//
//   logits    (rows, classes)
//   labels    (rows) int64; one outside 0 .. classes - 1 makes the loss NaN
//   weights   (classes), or null: all 1
//   row_loss, row_weight   (rows)     written (=)
//   gradient  (rows, classes), or null: d (sum of row losses) / d logits, written (=)
//
// Blocks of 256 threads with at most 64 registers: 32 warps to a multiprocessor.  The end of
// every model's forward pass, and the start of its backward pass.

#include "common.cuh"

extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void cross_entropy(
    const float* logits, const int64* labels, const float* weights, float* row_loss,
    float* row_weight, float* gradient, int64 rows, int classes, float smoothing) {
    int64 row = (int64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;  // a whole warp leaves: the sums below need all of its lanes
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
        sum += expf(x[j] - largest);  // largest is subtracted, or exp would overflow beyond 88
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
        // Not 0 * spread: that is infinite where a class is masked by a logit of -infinity.
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

// loss = sum of row_loss / sum of row_weight, and total = the latter: one block of 256 threads.
// A thread adds every 256th row, a warp its lanes, and the first warp the warps.
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

// dx = gradient * dy / total; dy (1) is the gradient that the loss was given, 1 most often.
// NaN where all weights are 0, as the loss is.
extern "C" __global__ __launch_bounds__(256, 4) wide_offsets void scale_gradient(
    const float* gradient, const float* dy, const float* total, float* dx, int64 size) {
    int64 i = global_thread();
    if (i < size) dx[i] = gradient[i] * (*total == 0.0f ? nan_value() : *dy / *total);
}
