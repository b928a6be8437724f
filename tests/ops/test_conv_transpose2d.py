"""conv_transpose2d: PyTorch's values and gradients, the adjoint of conv2d, half precision."""

import numpy as np
import pytest
from devices import assert_close, host, in_both_dtypes, leaf, results, tensor

import gpucnn
from gpucnn import ops
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.precision import bfloat16
from gpucnn.testing import gradcheck

pytestmark = pytest.mark.usefixtures("tiles_for_all")

# channels, outputs, kernel, and PyTorch's stride, padding, output_padding, groups, dilation
CASES = [
    (8, 16, (3, 3), (2, 1, 1, 1, 1)),
    (16, 32, (2, 2), (2, 0, 0, 1, 1)),
    (3, 5, (3, 2), ((1, 3), (0, 1), (0, 2), 1, 1)),
    (8, 6, (4, 4), (2, 1, 0, 2, 1)),
    (8, 8, (3, 3), (1, 2, 1, 1, 2)),  # output_padding reaches the stride
    (4, 6, (1, 1), (1, 0, 1, 1, 2)),  # windows of one pixel, fewer than pixels
    (4, 6, (1, 1), (1, 1, 2, 1, 3)),  # as many, elsewhere
    (4, 4, (3, 3), (3, 4, 2, 4, 1)),  # padding larger than a window
    (24, 20, (3, 3), (1, 1, 0, 1, 1)),  # dx by Winograd
]


@pytest.mark.parametrize(("c", "oc", "kernel", "rest"), CASES)
@pytest.mark.parametrize("bias", [True, False])
@in_both_dtypes
def test_values_and_gradients_are_pytorchs(c, oc, kernel, rest, bias, dtype, device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    arrays = [rng.standard_normal((2, 5, 6, c)), rng.standard_normal((c, *kernel, oc // rest[3]))]
    arrays += [rng.standard_normal(oc)] if bias else []
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    t, w = (a.permute(0, 3, 1, 2) for a in theirs[:2])
    z = torch.nn.functional.conv_transpose2d(t, w, theirs[2] if bias else None, *rest)
    z = z.permute(0, 2, 3, 1)
    dy = rng.standard_normal(z.shape)
    z.backward(torch.tensor(dy))
    ours = [leaf(a, device, dtype) for a in arrays]
    found = ops.conv_transpose2d(*ours[:2], ours[2] if bias else None, *rest)
    y, *gradients = results(found, dy, *ours)
    assert_close(y, z.detach().numpy())
    for mine, leaf_ in zip(gradients, theirs, strict=True):
        assert_close(mine, leaf_.grad.numpy())


def test_it_is_the_gradient_of_the_images_of_conv2d(device, rng):
    settings = {"stride": 2, "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}
    images = leaf(rng.standard_normal((2, 9, 8, 4)), device, np.float32)
    weight = tensor(rng.standard_normal((6, 3, 2, 4)), device, np.float32)
    y = ops.conv2d(images, weight, **settings)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    _, dx = results(y, dy, images)
    back = ops.conv_transpose2d(tensor(dy, device), weight, output_padding=(1, 0), **settings)
    assert back.shape == images.shape
    assert_close(back, dx)


def test_it_passes_gradcheck(device, rng):
    shapes = (1, 3, 2, 4), (4, 3, 2, 2), (4,)
    f = lambda *t: ops.conv_transpose2d(*t, 2, ((0, 1), (1, 0)), 1, 2)  # noqa: E731
    gradcheck(f, *(rng.standard_normal(s) for s in shapes), device=device)


def test_no_images_and_no_outputs(device):
    none = [((0, 4, 4, 2), (2, 3, 3, 3), (3,))]
    none += [((2, 4, 4, 2), (2, 3, 3, 0), (0,))] if device == "cpu" else []  # as conv2d
    for shapes in none:
        leaves = [leaf(np.ones(s), device, np.float32) for s in shapes]
        y = ops.conv_transpose2d(*leaves)
        assert y.shape == (shapes[0][0], 6, 6, shapes[2][0])
        found = results(y, np.ones(y.shape), *leaves)
        assert [g.shape for g in found[1:]] == list(shapes)
        assert not any(g.any() for g in found[1:])


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("images", ["float32", "half"])
def test_autocast_rounds_the_operands_and_the_result_only(half, images, device, rng):
    dtype = np.dtype(np.float16) if half == "float16" else bfloat16()
    bound = 2.0**-11 if half == "float16" else 2.0**-8
    shapes = (2, 5, 4, 16), (16, 3, 3, 8), (8,)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    rounded = [a.astype(dtype).astype(np.float64) for a in arrays[:2]] + [arrays[2].astype(float)]
    exact_leaves = [leaf(a, "cpu") for a in rounded]
    exact = ops.conv_transpose2d(*exact_leaves, 2, 1)
    dy = rng.standard_normal(exact.shape).astype(dtype)
    expected = results(exact, dy.astype(np.float64), *exact_leaves)
    given = [leaf(a, device) for a in arrays]
    if images == "half":
        given[0] = leaf(arrays[0].astype(dtype), device)
    with gpucnn.autocast(half):
        y = ops.conv_transpose2d(*given, 2, 1)
    found = results(y, dy, *given)
    assert [a.dtype for a in found] == [dtype, given[0].dtype, np.float32, np.float32]
    for ours, theirs, slack in zip(found, expected, (bound, bound, 1e-5, 1e-5), strict=True):
        assert_close(ours.astype(np.float32), theirs, slack)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"output_padding": 2, "stride": 2}, ArgumentError, "output_padding 2 must be smaller"),
        ({"padding": "same"}, ArgumentError, "padding 'same' has no meaning here"),
        ({"groups": 3}, ShapeError, "3 groups do not divide the 4 filters"),
        ({"padding": 3}, ShapeError, r"padding 3 leaves -1 x 0 pixels"),
        ({"bias": np.ones(3, np.float32)}, ShapeError, r"bias of shape \(2,\), got \(3,\)"),
        ({"bias": np.ones(2)}, DtypeError, "bias is float64"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(settings, error, message):
    x, w = (gpucnn.tensor(np.ones(s, np.float32)) for s in ((1, 3, 4, 4), (4, 3, 3, 2)))
    settings = {k: gpucnn.tensor(v) if k == "bias" else v for k, v in settings.items()}
    with pytest.raises(error, match=message):
        ops.conv_transpose2d(x, w, **settings)


def test_other_channels_and_axes_are_refused():
    x, w = (gpucnn.tensor(np.ones(s, np.float32)) for s in ((1, 3, 4, 4), (5, 3, 3, 2)))
    with pytest.raises(ShapeError, match=r"x has 4 channels, weight expects 5\n.*in_channels=4"):
        ops.conv_transpose2d(x, w)
    for pair in ((x[0], w), (x, w[0])):
        with pytest.raises(ShapeError, match="expected"):
            ops.conv_transpose2d(*pair)


def test_the_same_call_twice_has_the_same_bits(device, rng):
    arrays = [rng.standard_normal(s).astype(np.float32) for s in ((3, 9, 7, 8), (8, 3, 3, 4), (4,))]
    runs = []
    for _ in range(2):
        leaves = [leaf(a, device) for a in arrays]
        y = ops.conv_transpose2d(*leaves, 2)
        runs.append(results(y, np.ones(y.shape), *leaves))
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(host(a), host(b))
