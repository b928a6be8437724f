"""interpolate: PyTorch's values and gradients, half precision, launches, errors."""

import numpy as np
import pytest
from devices import assert_close, host, in_both_dtypes, leaf, results, tensor

import gpucnn
from gpucnn import cuda, ops
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.testing import gradcheck

SIZES = [
    {"scale_factor": 2},
    {"scale_factor": (3.0, 1.7)},
    {"scale_factor": (0.6, 1.1)},  # columns stay
    {"size": (1, 13)},
    {"size": 7},
]
MODES = [
    {"mode": "nearest"},
    {"mode": "bilinear"},
    {"mode": "bilinear", "align_corners": True},
]


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [3, 8])
@in_both_dtypes
def test_values_and_gradients_are_pytorchs(size, mode, channels, dtype, device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    values = rng.standard_normal((2, 5, 6, channels))
    t = torch.tensor(values.transpose(0, 3, 1, 2), requires_grad=True)
    z = torch.nn.functional.interpolate(t, **size, **mode)
    dy = rng.standard_normal(z.shape)
    z.backward(torch.tensor(dy))
    x = leaf(values, device, dtype)
    y, dx = results(ops.interpolate(x, **size, **mode), dy.transpose(0, 2, 3, 1), x)
    assert_close(y, z.detach().numpy().transpose(0, 2, 3, 1))
    assert_close(dx, t.grad.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_it_passes_gradcheck(mode, device, rng):
    for size in ((5, 2), (3, 4)):
        f = lambda x, size=size: ops.interpolate(x, size, **mode)  # noqa: E731
        gradcheck(f, rng.standard_normal((1, 3, 4, 2)), device=device)


def test_doubling_by_nearest_repeats_pixels_and_adds_their_gradients(device):
    x = leaf(np.arange(4).reshape(1, 2, 2, 1), device, np.float32)
    y, dx = results(ops.interpolate(x, scale_factor=2), np.ones((1, 4, 4, 1)), x)
    assert y[0, :, :, 0].tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    assert dx.reshape(-1).tolist() == [4] * 4


def test_long_sides_are_read_by_the_outputs_that_they_give(device, rng):
    """The inverse of a coordinate is rounded most where sides are long."""
    for size, outputs in ((1000, 3001), (3001, 1000), (1, 500)):
        for mode in MODES:
            x = leaf(rng.standard_normal((1, 1, size, 1)), device, np.float32)
            dy = rng.standard_normal((1, 1, outputs, 1)).astype(np.float32)
            y, dx = results(ops.interpolate(x, (1, outputs), **mode), dy, x)
            # the adjoint: <y, dy> == <x, dx>, as both maps are linear
            np.testing.assert_allclose((y * dy).sum(), (host(x) * dx).sum(), rtol=1e-3, atol=1e-2)
            assert (dx != 0).sum() >= min(size, outputs) * 0.9


def test_no_images_or_no_channels_give_none(device):
    for shape in ((0, 2, 3, 4), (2, 2, 3, 0)):
        x = leaf(np.ones(shape), device, np.float32)
        y = ops.interpolate(x, (4, 5), mode="bilinear")
        _, dx = results(y, np.ones(y.shape), x)
        assert y.shape == (shape[0], 4, 5, shape[3])
        assert dx.shape == shape


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once_and_stays_half_under_autocast(half, device, rng):
    pytest.importorskip("ml_dtypes")
    x = tensor(rng.standard_normal((2, 5, 6, 8)), "cpu", np.float32).astype(half)
    exact = ops.interpolate(x.astype(np.float32), scale_factor=2, mode="bilinear").astype(half)
    with gpucnn.autocast(half):
        y = ops.interpolate(x.to(device), scale_factor=2, mode="bilinear")
    assert y.dtype == x.dtype
    bound = 2.0**-7 if half == "bfloat16" else 2.0**-10  # both rounded, perhaps to neighbours
    assert_close(host(y).astype(np.float32), exact.numpy().astype(np.float32), bound)


def test_it_takes_one_launch_each_way(gpu, rng):
    x = leaf(rng.standard_normal((2, 3, 3, 4)), gpu, np.float32)
    with cuda.count_launches() as launches:
        y = ops.interpolate(x, scale_factor=2, mode="bilinear")
        y.backward(y.data)
    assert dict(launches) == {"interpolate_forward": 1, "interpolate_backward": 1}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ArgumentError, "either size or scale_factor, got size=None"),
        ({"size": 3, "scale_factor": 2}, ArgumentError, "either size or scale_factor"),
        ({"size": 0}, ArgumentError, "size must be at least 1"),
        ({"scale_factor": (2, 0)}, ArgumentError, "scale_factor must be a positive number"),
        ({"scale_factor": (2, 2, 2)}, ArgumentError, "scale_factor must be a positive number"),
        ({"scale_factor": float("nan")}, ArgumentError, "scale_factor must be a positive number"),
        ({"size": 3, "mode": "bicubic"}, ArgumentError, "'bicubic' is unknown; expected nearest"),
        ({"size": 3, "align_corners": False}, ArgumentError, "align_corners is for mode"),
        ({"scale_factor": 0.2}, ShapeError, "leaves 0 x 0 pixels of 3 x 4"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        ops.interpolate(np.ones((1, 3, 4, 2), np.float32), **settings)


def test_what_is_no_image_is_refused():
    for shape in ((3, 4, 2), (1, 0, 4, 2)):
        with pytest.raises(ShapeError, match="expected images"):
            ops.interpolate(np.ones(shape, np.float32), 3)
    with pytest.raises(DtypeError, match="floating-point"):
        ops.interpolate(np.ones((1, 3, 4, 2), np.uint8), 3)
