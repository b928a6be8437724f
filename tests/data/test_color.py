import numpy as np
import pytest

from gpucnn.data import ColorNoise, Normalize, color_components
from gpucnn.errors import ArgumentError, ShapeError


@pytest.fixture
def images(rng):
    """Pixels that vary mostly between dark yellow and light blue."""
    amount = rng.random((4, 9, 8, 1))
    pixels = 40 + amount * [30, 60, 150] + rng.integers(0, 9, (4, 9, 8, 3))
    return pixels.astype(np.uint8)


def test_components_are_those_of_the_covariance_largest_first(images):
    components = color_components(images)
    covariance = np.cov(images.reshape(-1, 3).T / 255, bias=True)
    variances = np.linalg.norm(components, axis=1)
    directions = components / variances[:, None]
    assert components.dtype == np.float32
    assert (np.diff(variances) < 0).all()
    assert np.allclose(directions @ directions.T, np.eye(3), atol=1e-5)
    rebuilt = (directions.T * variances) @ directions
    assert np.allclose(rebuilt, covariance, atol=1e-6)


def test_noise_is_one_colour_for_all_pixels_of_an_image(images):
    noise = ColorNoise(color_components(images))
    noisy = noise(images, np.random.default_rng(1))
    added = noisy - images / 255
    assert noisy.dtype == np.float32
    assert np.allclose(added, added[:, :1, :1], atol=1e-6)
    assert len(np.unique(added[:, 0, 0].round(5), axis=0)) == len(images)


def test_the_covariance_of_the_noise_follows_from_components_and_std(images):
    components = color_components(images)
    many = np.zeros((20_000, 1, 1, 3), np.uint8)
    added = ColorNoise(components, 0.2)(many, np.random.default_rng(1))[:, 0, 0]
    expected = 0.04 * components.T @ components
    assert np.allclose(np.cov(added.T), expected, rtol=0, atol=0.05 * expected.max())


def test_std_0_adds_no_noise_and_the_input_is_not_modified(images):
    before = images.copy()
    noise = ColorNoise(color_components(images), 0.0)
    shown = noise(images, np.random.default_rng(1))
    assert np.array_equal(shown, before.astype(np.float32) / 255)
    ColorNoise(noise.components)(images, np.random.default_rng(1))
    assert np.array_equal(images, before)


def test_normalize_accepts_its_result(images):
    noisy = ColorNoise(color_components(images))(images, np.random.default_rng(1))
    normalized = Normalize((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))(noisy)
    expected = (noisy - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    assert np.allclose(normalized, expected, atol=1e-4)


@pytest.mark.parametrize("scale", [1 / 255, 3.0])
def test_floats_get_the_same_noise_on_their_own_scale(images, scale):
    floats = images * scale
    noisy = ColorNoise(color_components(images))(images, np.random.default_rng(1))
    components = color_components(floats)
    assert np.allclose(components, color_components(images) * (255 * scale) ** 2, rtol=1e-4)
    one = ColorNoise(components / np.float32(255 * scale))(floats, np.random.default_rng(1))
    assert np.allclose(one, noisy * (255 * scale), rtol=1e-4)


def test_invalid_images_and_std_are_refused(images):
    with pytest.raises(ShapeError, match="of 2 pixels or more"):
        color_components(images[:0])
    with pytest.raises(ShapeError, match="3 x 3 components"):
        ColorNoise(color_components(images))(images[..., :1], np.random.default_rng(1))
    with pytest.raises(ArgumentError, match="std >= 0"):
        ColorNoise(color_components(images), -1.0)
