"""Initialisers against their formulas and torch.nn.init."""

import numpy as np
import pytest

import gpucnn
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


# --- dirac, whitening ---


@pytest.mark.parametrize("shape", [(8, 3, 3, 4), (4, 3, 3, 8), (6, 2, 2, 6), (5, 1, 4, 3)])
def test_dirac_equals_pytorchs(shape):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    theirs = torch.empty(shape[0], shape[3], shape[1], shape[2])
    torch.nn.init.dirac_(theirs)
    ours = nn.init.dirac(shape, np.random.default_rng(0))
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs.permute(0, 2, 3, 1).numpy())


def test_dirac_filters_copy_their_channels():
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False, weight_init=nn.init.dirac)
    x = gpucnn.randn(2, 5, 5, 4)
    np.testing.assert_allclose(conv(x).numpy(), x.numpy(), atol=1e-6)


def test_dirac_first_leaves_the_filters_beyond_the_channels_to_the_other_initialiser():
    shape = (7, 3, 3, 4)
    weights = nn.init.dirac_first(nn.init.kaiming_uniform)(shape, np.random.default_rng(3))
    drawn = nn.init.kaiming_uniform(shape, np.random.default_rng(3))
    np.testing.assert_array_equal(weights[:4], nn.init.dirac((4, 3, 3, 4), None))
    np.testing.assert_array_equal(weights[4:], drawn[4:])
    for init in (nn.init.dirac, nn.init.dirac_first(nn.init.zeros)):
        with pytest.raises(ArgumentError, match=r"expected filters \(OC, KH, KW, C\)"):
            init((4, 3), np.random.default_rng(0))


def correlated_images(n=60, side=12):
    images = np.random.default_rng(0).standard_normal((n, side, side, 3)).astype(np.float32)
    images = images + np.roll(images, 1, 1) + np.roll(images, 1, 2) + 0.7 * images[..., :1]
    return images - np.float32(0.2)


def test_whitened_patches_have_the_covariance_of_the_identity():
    images = correlated_images()
    whitening = nn.init.whitening(images)
    conv = nn.Conv2d(3, 24, 2, bias=False, weight_init=whitening)
    y = conv(gpucnn.tensor(images)).numpy().reshape(-1, 24)
    assert np.abs(np.cov(y[:, :12].T) - np.eye(12)).max() < 0.02  # eps makes it smaller than 1
    np.testing.assert_allclose(y[:, 12:], -y[:, :12], atol=1e-4)
    fewer = whitening((6, 2, 2, 3), np.random.default_rng(0))
    np.testing.assert_array_equal(fewer[:3], conv.weight.numpy()[:3])  # the largest eigenvalues


def test_whitening_refuses_what_does_not_fit():
    generator = np.random.default_rng(0)
    with pytest.raises(ArgumentError, match="expected float images"):
        nn.init.whitening(np.zeros((2, 4, 4, 3), np.uint8))
    init = nn.init.whitening(correlated_images(2))
    for shape in ((24, 2, 2, 4), (26, 2, 2, 3), (23, 2, 2, 3), (24, 12)):
        with pytest.raises(ArgumentError, match=r"whitening: filters .* do not fit"):
            init(shape, generator)
    with pytest.raises(ArgumentError, match="13 x 2 is larger"):
        init((2, 13, 2, 3), generator)
