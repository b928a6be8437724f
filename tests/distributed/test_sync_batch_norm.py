"""SyncBatchNorm: ranks with parts of a batch compute what BatchNorm does for the whole batch."""

import numpy as np
import pytest
from devices import SECOND_CUDA, assert_close, host, in_both_dtypes, leaf, results, tensor
from fake_ranks import run
from nccl_ranks import cupy_with_fake_nccl, ranks

import gpucnn
from gpucnn import inspect, nn, ops
from gpucnn.distributed import SyncBatchNorm, convert_sync_batchnorm
from gpucnn.errors import ShapeError
from gpucnn.random import batch_part
from gpucnn.train.replay import replay

SHAPES = [(7, 3), (5, 4, 2), (6, 3, 5, 4), (16, 16, 8, 24)]


def layer_for(shape, device, dtype=np.float32):
    layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[-1], 1e-3, 0.2)
    rng = np.random.default_rng(1)
    for _, value in (*layer.named_parameters(), *layer.named_buffers()):
        value.data[...] = rng.random(shape[-1]) + 0.5
    wide = np.promote_types(dtype, np.float32)  # parameters of half-precision images
    return layer.astype(wide).to(device)


def statistics(layer):
    return [host(buffer) for buffer in layer.buffers()]


def whole(x, dy, device):
    """y, dx, dweight, dbias and the running statistics of BatchNorm for the whole batch."""
    layer, x = layer_for(x.shape, device, x.dtype), leaf(x, device)
    return [*results(layer(x), dy, x, layer.weight, layer.bias), *statistics(layer)]


def parts(total, size):
    """Each rank's slice of the images, of a batch of `total`."""
    return [slice(total * rank // size, total * (rank + 1) // size) for rank in range(size)]


def of_ranks(x, dy, slices, device):
    """Each rank's results, as those of `whole`; an empty slice runs a filler image of NaN."""

    def program(comm):
        layer = SyncBatchNorm(layer_for(x.shape, device, x.dtype), comm)
        part = slices[comm.rank]
        count = part.stop - part.start
        images, gradient = (a[part] if count else np.full_like(a[:1], np.nan) for a in (x, dy))
        with batch_part(part.start, count, len(x)):
            images = leaf(images, device)
            found = results(layer(images), gradient, images, layer.weight, layer.bias)
        if not count:
            assert not any(value.any() for value in found[1:])  # all gradients are 0
            found[:2] = found[0][:0], found[1][:0]
        return [*found, *statistics(layer)]

    return run(len(slices), program)


def assert_equal_the_whole(found, expected, bound=None):
    y, dx, dweight, dbias, *_ = zip(*found, strict=True)
    together = [np.concatenate(y), np.concatenate(dx), sum(dweight), sum(dbias)]
    for actual, wanted in zip(together, expected[:4], strict=True):
        assert actual.dtype == wanted.dtype
        assert_close(actual, wanted, bound)
    for rank in found:
        for actual, wanted, first in zip(rank[4:], expected[4:], found[0][4:], strict=True):
            assert_close(actual, wanted)
            np.testing.assert_array_equal(actual, first)  # the same bits on all ranks


def draw(rng, shape, dtype=np.float32):
    return [a.astype(dtype) for a in (rng.standard_normal(shape) * 3 + 2, rng.random(shape))]


@in_both_dtypes
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients_are_those_of_the_whole_batch(shape, dtype, device, rng):
    x, dy = draw(rng, shape, dtype)
    expected = whole(x, dy, device)
    for size in (1, 2, 3, 4):
        assert_equal_the_whole(of_ranks(x, dy, parts(len(x), size), device), expected)


def test_half_precision_images_have_float32_parameters(device, rng):
    x, dy = draw(rng, (6, 3, 5, 4), np.float16)
    expected = whole(x, dy, device)
    assert [a.dtype for a in expected] == [np.float16] * 2 + [np.float32] * 4
    assert_equal_the_whole(of_ranks(x, dy, parts(6, 2), device), expected, 1e-3)


def test_ranks_count_by_their_images(device, rng):
    x, dy = draw(rng, (8, 3, 3, 5))
    slices = [slice(0, 1), slice(1, 7), slice(7, 8)]
    assert_equal_the_whole(of_ranks(x, dy, slices, device), whole(x, dy, device))


def test_a_rank_may_have_one_value_a_channel(device, rng):
    x, dy = draw(rng, (3, 6))
    assert_equal_the_whole(of_ranks(x, dy, parts(3, 3), device), whole(x, dy, device))


def test_a_filler_image_counts_in_nothing_even_if_it_is_nan(device, rng):
    x, dy = draw(rng, (2, 3, 3, 5))  # fewer images than ranks
    assert_equal_the_whole(of_ranks(x, dy, parts(2, 4), device), whole(x, dy, device))


def test_a_rank_without_rows_takes_part(device, rng):
    x, dy = draw(rng, (4, 5))

    def program(comm):
        layer = SyncBatchNorm(layer_for(x.shape, device), comm)
        mine = slice(0, 4) if comm.rank else slice(0, 0)
        images = leaf(x[mine], device)
        return [
            *results(layer(images), dy[mine], images, layer.weight, layer.bias),
            *statistics(layer),
        ]

    assert_equal_the_whole(run(2, program), whole(x, dy, device))


def test_float16_is_summed_in_float32(device, rng):
    x, dy = draw(rng, (6, 9, 9, 4), np.float16)
    x += 200  # squares beyond 65504
    expected = whole(x.astype(np.float32), dy.astype(np.float32), device)
    found = of_ranks(x, dy, parts(6, 2), device)
    assert found[0][0].dtype == found[0][1].dtype == np.float16
    assert_close(np.concatenate([rank[0] for rank in found]), expected[0], 2e-3)
    assert_close(np.concatenate([rank[1] for rank in found]), expected[1], 2e-3)


def test_a_large_mean_does_not_swallow_the_variance_within_or_between_ranks(device, rng):
    near = rng.standard_normal((4096, 3)) + 1e3
    apart = np.repeat([[1e4, 1e4, 1e4], [1e4 + 4, 1e4 + 4, 1e4 + 4]], 8, axis=0)  # 2 ranks of 8
    for x in (near.astype(np.float32), apart.astype(np.float32)):

        def program(comm, x=x):
            part = parts(len(x), comm.size)[comm.rank]
            return host(SyncBatchNorm(nn.BatchNorm1d(3).to(device), comm)(tensor(x[part], device)))

        y = np.concatenate(run(2, program))
        np.testing.assert_allclose(y.std(axis=0), 1, rtol=1e-3)


def test_a_run_has_the_same_bits_each_time(device, rng):
    x, dy = draw(rng, (7, 5, 5, 3))
    first, second = (of_ranks(x, dy, parts(7, 3), device) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        for actual, wanted in zip(a, b, strict=True):
            np.testing.assert_array_equal(actual, wanted)


def test_alone_it_is_batch_norm_to_the_bit_and_says_nothing(device, rng):
    x, dy = draw(rng, (6, 3, 5, 4))

    def program(comm):
        layer, images = SyncBatchNorm(layer_for(x.shape, device), comm), leaf(x, device)
        found = results(layer(images), dy, images, layer.weight, layer.bias)
        return [*found, *statistics(layer), comm.calls]

    *found, calls = run(1, program)[0]
    assert calls == []
    for actual, wanted in zip(found, whole(x, dy, device), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_evaluation_is_batch_norms_and_asks_no_other_rank(device, rng):
    x, _ = draw(rng, (6, 3, 5, 4))
    plain = layer_for(x.shape, device).eval()

    def program(comm):
        layer = SyncBatchNorm(layer_for(x.shape, device).eval(), comm)
        return host(layer(tensor(x, device))), comm.calls

    for y, calls in run(2, program):
        np.testing.assert_array_equal(y, host(plain(tensor(x, device))))
        assert calls == []


def test_backward_asks_the_other_ranks_only_for_the_gradient_of_x(device, rng):
    x, dy = draw(rng, (4, 5))

    def program(comm):
        layer = SyncBatchNorm(layer_for(x.shape, device), comm)
        results(layer(tensor(x, device)), dy, layer.weight)
        asked = len(comm.calls)
        layer.requires_grad_(False).zero_grad()
        images = leaf(x, device)
        results(layer(images), dy, images)
        assert layer.bias.grad is None
        return asked, len(comm.calls)

    assert run(2, program) == [(1, 3)] * 2


def test_a_value_that_is_not_finite_reaches_every_rank(device, rng):
    x, _ = draw(rng, (4, 3))
    x[3, 1] = np.inf

    def program(comm):
        layer = SyncBatchNorm(nn.BatchNorm1d(3).to(device), comm)
        part = parts(4, 2)[comm.rank]
        with np.errstate(invalid="ignore"):
            return np.isfinite(host(layer(tensor(x[part], device)))).all(axis=0).tolist()

    assert run(2, program) == [[True, False, True]] * 2


def test_fewer_than_two_values_in_all_ranks_are_refused_on_every_rank(device):
    def program(comm):
        layer = SyncBatchNorm(nn.BatchNorm1d(3).to(device), comm)
        x = tensor(np.ones((1, 3), np.float32), device)
        with (
            batch_part(0, 1 - comm.rank, 1),
            pytest.raises(ShapeError, match="at least two values"),
        ):
            layer(x)
        np.testing.assert_array_equal(statistics(layer), [[0] * 3, [1] * 3])
        return True

    assert run(2, program) == [True, True]


def test_shapes_that_no_batch_norm_takes_are_refused():
    layer = run(1, lambda comm: SyncBatchNorm(nn.BatchNorm1d(3), comm))[0]
    with pytest.raises(ShapeError, match=r"SyncBatchNorm: expected vectors \(N, C\) or .* images"):
        layer(gpucnn.tensor(np.ones(3, np.float32)))
    with pytest.raises(ShapeError, match="weight has shape"):
        layer(gpucnn.tensor(np.ones((3, 4), np.float32)))


def network(device):
    rng = np.random.Generator(np.random.Philox(4))  # of each rank's own: ranks are threads here
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False, generator=rng),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3, rng),
        nn.Conv2d(8, 8, 3, stride=2, bias=False, generator=rng),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(72, 16, bias=False, generator=rng),
        nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5, rng), nn.Linear(16, 4, generator=rng),
    ).to(device)  # fmt: skip


def test_a_network_with_dropout_gives_the_gradients_of_the_whole_batch(device, rng):
    x, _ = draw(rng, (6, 7, 7, 3))
    labels = rng.integers(0, 4, 6)

    def gradients(model, part, weight):
        loss = ops.cross_entropy(model(tensor(x[part], device)), tensor(labels[part], device))
        (loss * weight).backward()
        values = {name: host(p.grad) for name, p in model.named_parameters()}
        return float(loss.item()) * weight, values, [host(b) for b in model.buffers()]

    loss, expected, buffers = gradients(network(device), slice(0, 6), 1.0)
    for size in (2, 4):
        models = [network(device) for _ in range(size)]

        def program(comm, models=models):
            model = convert_sync_batchnorm(models[comm.rank], comm)
            part = parts(6, comm.size)[comm.rank]
            with batch_part(part.start, part.stop - part.start, 6):
                return gradients(model, part, (part.stop - part.start) / 6)

        found = run(size, program)
        assert sum(rank[0] for rank in found) == pytest.approx(loss, rel=1e-5)
        for name, wanted in expected.items():
            assert_close(sum(rank[1][name] for rank in found), wanted, 1e-4)
        for rank in found:
            for actual, wanted in zip(rank[2], buffers, strict=True):
                assert_close(actual, wanted)


@pytest.mark.parametrize("gpu", [SECOND_CUDA])
def test_two_gpus_through_nccl_give_the_results_of_the_whole_batch(gpu, rng, monkeypatch):
    cupy_with_fake_nccl(monkeypatch)
    x, dy = draw(rng, (5, 6, 6, 3))
    expected = whole(x, dy, "cuda:0")  # also compiles the kernels, in one thread

    def program(comm):
        part = parts(5, 2)[comm.rank]
        layer = SyncBatchNorm(layer_for(x.shape, str(comm.device)), comm)
        images = leaf(x[part], str(comm.device))
        return [
            *results(layer(images), dy[part], images, layer.weight, layer.bias),
            *statistics(layer),
        ]

    assert_equal_the_whole(ranks(2, program), expected)


def test_a_rank_searches_for_nan_and_predicts_memory_without_the_others():
    def program(comm):
        model = convert_sync_batchnorm(network("cpu"), comm)
        if comm.rank:
            return []  # the other rank would wait for this one
        x, labels = np.ones((4, 7, 7, 3), np.float32), gpucnn.tensor(np.arange(4))
        inspect.training_memory(model, (7, 7, 3), 4)
        model[-1].weight.data[0, 0] = np.nan
        found = replay(model, gpucnn.tensor(x), labels, ops.cross_entropy)
        return found, comm.calls

    found, calls = run(2, program)[0]
    assert "its parameter weight is not finite" in found
    assert calls == []
