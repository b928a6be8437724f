"""What the memory-bound kernels share: division, counters, accuracy, the number of launches."""

import numpy as np
import pytest
from devices import host, leaf, relative, tensor
from kernel_cases import on_gpu

import gpucnn
from gpucnn import cuda, nn, ops
from gpucnn.device import Device
from gpucnn.ops._kernels import Divisor, vector_width
from gpucnn.ops.batch_norm import cuda as batch_norm_cuda

pytestmark = pytest.mark.usefixtures("compiler")


def quotient(n: np.ndarray, by: Divisor) -> np.ndarray:
    """n // by.divisor as kernels/vector.cuh computes it, with 32-bit sums."""
    multiplier = np.uint64(by.multiplier % 2**32)
    high = (n.astype(np.uint64) * multiplier) >> np.uint64(32)
    total = high + n.astype(np.uint64)
    assert (total < 2**32).all()
    return (total >> np.uint64(by.shift)).astype(np.int64)


def test_a_divisor_divides_every_number_below_2_to_the_31(rng):
    last = 2**31 - 1
    divisors = [1, 2, 3, 5, 7, 31, 32, 33, 641, 65535, 65536, 65537, 2**30, last - 1, last]
    for divisor in [*divisors, *rng.integers(1, 2**31, 300), *rng.integers(1, 5000, 300)]:
        divisor = int(divisor)
        multiples = rng.integers(0, last // divisor + 1, 50) * divisor
        near = np.concatenate([multiples - 1, multiples, multiples + 1, [0, 1, last - 1, last]])
        n = np.unique(near.clip(0, last))
        by = Divisor.of(divisor)
        assert abs(by.multiplier) <= 2**31
        assert 0 <= by.shift < 32
        np.testing.assert_array_equal(quotient(n, by), n // divisor)


def test_threads_own_16_bytes_where_channels_and_addresses_allow_it():
    x = on_gpu(np.zeros(64, np.float32)).data
    half = on_gpu(np.zeros(64, np.float16)).data
    assert [vector_width(c, x) for c in (1, 3, 4, 6, 8, 12, 0)] == [1, 1, 4, 1, 4, 4, 1]
    assert [vector_width(c, half) for c in (4, 8, 12, 16)] == [1, 8, 1, 8]
    assert vector_width(8, x, x[4:], None) == 4
    assert vector_width(8, x, x[1:]) == 1


@pytest.mark.parametrize("rows", [2, 17, 3000, 20000])
@pytest.mark.parametrize("channels", [1, 6, 8, 300])
def test_variance_is_accurate_for_a_mean_that_is_large_beside_it(rows, channels, rng):
    if rows * channels > 2e5:
        rows = 600
    # float32 numbers near 1e4 are 1e-3 apart; the variance of what is stored is exact in float64
    x = (1e4 + 0.02 * rng.standard_normal((rows, channels))).astype(np.float32)
    exact_mean, exact_var = x.mean(axis=0, dtype=np.float64), x.var(axis=0, dtype=np.float64)
    mean, var, scale = batch_norm_cuda.statistics(on_gpu(x).data, 1e-8)
    np.testing.assert_allclose(mean.get(), exact_mean, rtol=6e-8)
    np.testing.assert_allclose(var.get(), exact_var, rtol=2e-6)
    np.testing.assert_allclose(scale.get(), (exact_var + 1e-8) ** -0.5, rtol=2e-6)


def test_an_outlier_in_row_0_costs_little_accuracy(rng):
    x = rng.standard_normal((9000, 8)).astype(np.float32)
    x[0] = 1e3
    _, var, _ = batch_norm_cuda.statistics(on_gpu(x).data, 1e-8)
    np.testing.assert_allclose(var.get(), x.var(axis=0, dtype=np.float64), rtol=2e-5)


def test_equal_values_have_variance_0_and_nan_stays(rng):
    x = np.full((700, 8), 3.7, np.float32)
    assert (batch_norm_cuda.statistics(on_gpu(x).data, 1.0)[1].get() == 0).all()
    x[400, 2] = np.nan
    var = batch_norm_cuda.statistics(on_gpu(x).data, 1.0)[1].get()
    assert np.isnan(var[2])
    assert (np.delete(var, 2) == 0).all()


@pytest.mark.parametrize("schedule", ["lowest", "highest", "random:5"])
def test_sums_do_not_depend_on_the_order_of_the_blocks_and_leave_the_counters_zero(
    schedule, monkeypatch, rng
):
    x = rng.standard_normal((9000, 40)).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    logits = rng.standard_normal((100, 7)).astype(np.float32)

    def results() -> list[np.ndarray]:
        there, back = on_gpu(x).data, on_gpu(dy).data
        statistics = batch_norm_cuda.statistics(there, 1e-5)
        sums = batch_norm_cuda.gradient_sums(back, there, *statistics[::2])
        loss = ops.cross_entropy(on_gpu(logits), np.arange(100) % 7)
        return [a.get() for a in (*statistics, sums, loss.data)]

    expected = results()
    monkeypatch.setenv("GPUCNN_CUDASIM", f"fast,schedule={schedule}")
    for _ in range(2):
        for ours, theirs in zip(results(), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert not cuda.counters(Device("cudasim"), 1).get().any()


def test_batch_norm_takes_two_launches_each_way_and_one_in_inference(rng):
    x, ones = leaf(rng.standard_normal((3, 4, 4, 8)), "cudasim", np.float32), np.ones(8, np.float32)
    w, b = leaf(ones, "cudasim"), leaf(ones, "cudasim")
    running = [tensor(ones, "cudasim").data for _ in range(2)]
    with cuda.count_launches() as launches:
        y = ops.batch_norm(x, w, b, *running, training=True)
        y.backward(y.data)
    assert dict(launches) == dict.fromkeys(
        ["batch_norm_moments", "batch_norm_apply", "batch_norm_products", "batch_norm_backward"], 1
    )
    with cuda.count_launches() as launches, gpucnn.no_grad():
        ops.batch_norm(x, w, b, *running, training=False)
    assert dict(launches) == {"batch_norm_infer": 1}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cudasim"])
def test_a_fused_relu_gives_the_bits_of_a_separate_one(device, training, rng):
    x = rng.standard_normal((5, 3, 4, 8)).astype(np.float32)
    x[0, 0, 0, 0] = np.nan if not training else 0
    parts = [rng.standard_normal(8).astype(np.float32) for _ in range(2)]
    dy = rng.standard_normal(x.shape).astype(np.float32)
    found = []
    for fused in (True, False):
        leaves = [leaf(a, device) for a in (x, *parts)]
        running = [tensor(np.full(8, v, np.float32), device).data for v in (0.2, 2)]
        y = ops.batch_norm(*leaves, *running, training=training, relu=fused)
        y = y if fused else ops.relu(y)
        y.backward(tensor(dy, device).data)
        found.append([host(a) for a in (y, *(t.grad for t in leaves))])
    assert (found[0][0] == 0).sum() > 100
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_convolution_masks_for_the_relu_of_a_batch_norm_before_it(rng):
    x = leaf(rng.standard_normal((2, 6, 6, 8)), "cudasim", np.float32)
    generator = np.random.default_rng(0)
    layers = [nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, generator=generator)]
    model = nn.Sequential(*layers).to("cudasim")
    with cuda.count_launches() as launches:
        y = model(x)
        y.backward(y.data)
    assert not {"relu_forward", "relu_backward"} & set(launches)


def test_running_averages_move_as_on_the_cpu_bit_for_bit_given_the_same_statistics(rng):
    # two rows of small integers: mean and variance are exact on both devices
    x = rng.integers(-8, 9, (2, 12)).astype(np.float32) * 2
    found = []
    for device in ("cpu", "cudasim"):
        w, b = tensor(np.ones(12, np.float32), device), tensor(np.zeros(12, np.float32), device)
        start = np.linspace(-1, 2, 12).astype(np.float32)
        running = [tensor(start, device).data, tensor(start * start, device).data]
        for _ in range(3):
            ops.batch_norm(tensor(x, device), w, b, *running, training=True, momentum=0.3)
        found.append([np.asarray(a.get() if device != "cpu" else a) for a in running])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_winner_of_a_pooling_window_is_one_byte_up_to_255_pixels(rng):
    x = leaf(rng.standard_normal((1, 40, 40, 8)), "cudasim", np.float32)
    for size, dtype in ((3, np.uint8), ((15, 17), np.uint8), (16, np.int32)):
        with cuda.record_launches() as launches:
            ops.max_pool2d(x, size, 2)
        winners = launches[0].values[2]
        assert winners.dtype == dtype


def test_windows_side_by_side_read_dy_once(rng):
    x = rng.standard_normal((2, 9, 8, 8)).astype(np.float32)
    for kernel, stride, name in (
        (2, 2, "max_pool2d_backward_cells"),
        ((2, 1), (3, 2), "max_pool2d_backward_cells"),
        (3, 2, "max_pool2d_backward"),
    ):
        t, plain = leaf(x, "cudasim"), leaf(x, "cpu")
        y, z = ops.max_pool2d(t, kernel, stride), ops.max_pool2d(plain, kernel, stride)
        with cuda.count_launches() as launches:
            y.backward(y.data)
        z.backward(z.data)
        assert dict(launches) == {name: 1}
        assert relative(t.grad, plain.grad) <= 1e-7
