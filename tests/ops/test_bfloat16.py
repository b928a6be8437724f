"""bfloat16 as the dtype of tensors: created, computed with, saved and shared."""

import sys

import numpy as np
import pytest
from devices import host, leaf, results, tensor

import gpucnn
from gpucnn import nn, ops, precision
from gpucnn.errors import CheckpointError, DivergenceError, DtypeError

bfloat16 = precision.bfloat16()

OPS = {
    "x + x": lambda x: x + x,
    "x + 0.1": lambda x: x + 0.1,
    "0.1 - x": lambda x: 0.1 - x,
    "x * 2.7": lambda x: x * 2.7,
    "3 * x": lambda x: 3 * x,
    "x * x": lambda x: x * x,
    "x / 3": lambda x: x / 3,
    "1 / x": lambda x: 1 / x,
    "x / x[0]": lambda x: x / x[0],
    "-x": lambda x: -x,
    "x ** 2": lambda x: x**2,
    "x ** 0.5": lambda x: x**0.5,
    "x ** -1.5": lambda x: x**-1.5,
    "exp": ops.exp,
    "log": ops.log,
    "sqrt": ops.sqrt,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "gelu": ops.gelu,
    "where": lambda x: ops.where(np.arange(12).reshape(3, 4) % 2 == 0, x, -x),
    "where, a number": lambda x: ops.where(np.arange(12).reshape(3, 4) % 2 == 0, x, 0.1),
    "sum": lambda x: x.sum(axis=0),
    "mean": ops.mean,
    "var": lambda x: ops.var(x, axis=1),
    "max": lambda x: x.max(axis=1, keepdims=True),
    "min": ops.min,
    "reshape": lambda x: x.reshape(2, 6),
    "transpose": lambda x: x.T,
    "concatenate": lambda x: ops.concatenate([x, x], axis=1),
    "pad": lambda x: ops.pad(x, ((1, 0), (0, 2)), 0.1),
    "x[1:]": lambda x: x[1:],
    "x[[0, 2, 0]]": lambda x: x[[0, 2, 0]],
}


@pytest.mark.parametrize("name", OPS)
def test_a_result_and_its_gradient_are_those_of_float32_rounded_once(name, device, rng):
    op = OPS[name]
    values = (rng.random((3, 4)) + 0.5).astype(bfloat16)
    found, expected = [], []
    for dtype, into in ((bfloat16, found), (np.float32, expected)):
        x = leaf(values.astype(np.float32), device, dtype)
        y = op(x)
        dy = np.linspace(0.5, 1.5, y.size, dtype=np.float32).reshape(y.shape).astype(bfloat16)
        into += [y.dtype, *results(y, dy.astype(np.float32), x)]
    assert found[0] == bfloat16
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert a.dtype == bfloat16
        # One rounding; the gradient of an op that uses x twice is a sum of two rounded ones.
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=2**-7, atol=2**-7)


def test_creation_takes_the_name_and_arrays_and_shows_values(device):
    x = gpucnn.tensor([1.0, 1 / 3, 3e38], device=device, dtype="bfloat16", requires_grad=True)
    assert x.dtype == bfloat16
    assert "bfloat16" in repr(x)
    assert "0.33398" in repr(x)
    assert x[1].item() == 0.333984375
    again = gpucnn.tensor(x.numpy(), device=device)
    assert again.dtype == bfloat16
    assert host(again.astype("float32")).tolist() == host(x).astype(np.float32).tolist()
    assert x.astype("bfloat16") is x
    assert x.argmax().item() == 2


def test_the_largest_of_values_with_nan_is_nan(device, recwarn):
    x = gpucnn.tensor([1.0, float("nan"), 3.0], device=device, dtype="bfloat16")
    assert np.isnan(x.max().item())
    assert np.isnan(x.min().item())
    assert not recwarn.list


def test_operands_of_two_dtypes_are_still_refused(device):
    x = tensor(np.ones(3, np.float32), device)
    with pytest.raises(DtypeError, match="float32, the other bfloat16"):
        x + x.astype("bfloat16")


def test_without_ml_dtypes_the_error_says_what_to_install(monkeypatch, tmp_path):
    gpucnn.save(tmp_path / "m.safetensors", nn.Linear(2, 2).astype("bfloat16"))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    precision.bfloat16.cache_clear()
    try:
        for use in (
            lambda: gpucnn.tensor([1.0], dtype="bfloat16"),
            lambda: nn.Linear(2, 2).astype("bfloat16"),
            lambda: gpucnn.autocast("bfloat16"),
        ):
            with pytest.raises(DtypeError, match=r'bfloat16 needs .*ml_dtypes: pip install "gpuc'):
                use()
        with pytest.raises(
            CheckpointError, match=r"safetensors: model\.\w+: bfloat16 needs the package"
        ):
            gpucnn.load(tmp_path / "m.safetensors", nn.Linear(2, 2))
    finally:
        precision.bfloat16.cache_clear()


@pytest.mark.parametrize("into", ["bfloat16", "float32"])
def test_a_model_in_bfloat16_is_saved_and_loaded_bit_by_bit(into, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).astype("bfloat16")
    model[0].bias.data[0] = np.inf  # load keeps the bits; save would refuse infinities
    with pytest.raises(DivergenceError, match="bias is not finite"):
        gpucnn.save(tmp_path / "m.safetensors", model)
    model[0].bias.data[0] = -0.0
    gpucnn.save(tmp_path / "m.safetensors", model)
    mine = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).astype(into)
    gpucnn.load(tmp_path / "m.safetensors", mine)
    for name, value in mine.state_dict().items():
        assert value.dtype == into
        expected = model.state_dict()[name]
        assert value.astype(bfloat16).tobytes() == expected.tobytes()


def test_numpy_cannot_share_bfloat16_and_the_error_says_so():
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    x = gpucnn.tensor([1.0], dtype="bfloat16")
    with pytest.raises(BufferError, match=r"NumPy cannot share bfloat16.*\n.*astype"):
        torch.from_dlpack(x)


@pytest.mark.gpu
def test_cupy_shares_bfloat16():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    x = gpucnn.tensor([1.0, 2.0], device="cuda", dtype="bfloat16")
    theirs = cupy.from_dlpack(x)
    assert theirs.dtype == bfloat16
    assert theirs.data.ptr == x.data.data.ptr
    assert gpucnn.from_dlpack(theirs).dtype == bfloat16
