"""Initialisers against their formulas and torch.nn.init."""

import numpy as np
import pytest

from gpucnn import nn
from gpucnn.errors import ArgumentError

SHAPES = [(256, 3, 3, 64), (64, 5, 3, 96), (400, 300)]
FORMULAS = {
    "kaiming_normal": lambda fan_in, fan_out: np.sqrt(2 / fan_in),
    "kaiming_uniform": lambda fan_in, fan_out: np.sqrt(2 / fan_in),
    "xavier_normal": lambda fan_in, fan_out: np.sqrt(2 / (fan_in + fan_out)),
    "xavier_uniform": lambda fan_in, fan_out: np.sqrt(2 / (fan_in + fan_out)),
}


def fans(shape):
    return np.prod(shape[1:]), shape[0] * np.prod(shape[1:-1])


def check_spread(weights, std, uniform):
    assert weights.dtype == np.float32
    assert abs(weights.mean()) < 5 * std / np.sqrt(weights.size)
    assert weights.std() == pytest.approx(std, rel=0.01)
    bound = np.sqrt(3) * std
    if uniform:
        assert 0.999 * bound < np.abs(weights).max() <= bound * (1 + 1e-6)
    else:
        assert np.abs(weights).max() > 1.5 * bound


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FORMULAS)
def test_an_initialiser_has_the_spread_of_its_formula(name, shape):
    weights = getattr(nn.init, name)(shape, np.random.default_rng(0))
    assert weights.shape == shape
    check_spread(weights, FORMULAS[name](*fans(shape)), "uniform" in name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FORMULAS)
def test_an_initialiser_has_the_spread_of_pytorchs(name, shape):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    torch.manual_seed(0)
    theirs = torch.empty(shape[0], shape[-1], *shape[1:-1])  # channels first
    options = {"nonlinearity": "relu"} if "kaiming" in name else {}
    getattr(torch.nn.init, name + "_")(theirs, **options)
    ours = getattr(nn.init, name)(shape, np.random.default_rng(0))
    assert ours.std() == pytest.approx(float(theirs.std()), rel=0.02)
    if "uniform" in name:
        assert np.abs(ours).max() == pytest.approx(float(theirs.abs().max()), rel=0.002)


def test_normal_has_its_standard_deviation_and_constants_their_value():
    generator = np.random.default_rng(0)
    check_spread(nn.init.normal(0.01)(SHAPES[0], generator), 0.01, uniform=False)
    for init, value in ((nn.init.zeros, 0), (nn.init.ones, 1), (nn.init.constant(0.5), 0.5)):
        weights = init((3,), generator)
        assert weights.dtype == np.float32
        assert weights.tolist() == [value] * 3


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0)])
def test_a_shape_without_a_fan_is_refused(name, shape):
    with pytest.raises(ArgumentError, match=r"expected two axes or more, none of size 0"):
        getattr(nn.init, name)(shape, np.random.default_rng(0))


def test_a_negative_standard_deviation_is_refused():
    with pytest.raises(ArgumentError, match="std must not be negative, got -1"):
        nn.init.normal(-1)
