import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucnn import data
from gpucnn.errors import ArgumentError, DtypeError, ShapeError


def rng(seed=0):
    return np.random.default_rng(seed)


def random_images(n=6, h=8, w=9, c=3, seed=0):
    return rng(seed).integers(0, 256, (n, h, w, c)).astype(np.uint8)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 4),
    h=st.integers(3, 9),
    w=st.integers(3, 9),
    c=st.integers(1, 4),
    padding=st.integers(0, 2),
    size=st.integers(1, 7),
    mode=st.sampled_from(["reflect", "edge", "constant"]),
)
def test_each_crop_is_a_window_of_its_own_padded_image(n, h, w, c, padding, size, mode):
    if size > min(h, w) + 2 * padding:
        return
    images = random_images(n, h, w, c)
    crops = data.RandomCrop(size, padding, mode)(images, rng(1))
    assert crops.shape == (n, size, size, c)
    assert crops.dtype == np.uint8
    for image, crop in zip(images, crops, strict=True):
        padded = np.pad(image, ((padding,) * 2, (padding,) * 2, (0, 0)), mode)
        places = [
            (i, j)
            for i in range(padded.shape[0] - size + 1)
            for j in range(padded.shape[1] - size + 1)
            if np.array_equal(padded[i : i + size, j : j + size], crop)
        ]
        assert places


def test_crop_uses_every_offset_equally_often():
    column = np.arange(40, dtype=np.uint8)
    images = np.broadcast_to(column[:32, None, None], (20_000, 32, 32, 1)).copy()
    tops = data.RandomCrop(32, 4, "edge")(images, rng())[:, 16, 0, 0].astype(int) - 16
    counts = np.bincount(tops + 4, minlength=9)
    expected = 20_000 / 9
    assert counts.shape == (9,)
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-squared, 8 degrees, p = 5e-4


def test_crop_of_the_full_size_returns_the_image():
    images = random_images(h=8, w=8)
    np.testing.assert_array_equal(data.RandomCrop(8)(images, rng()), images)


def test_crop_of_images_that_are_not_contiguous():
    images = random_images(12, 16, 16)
    np.testing.assert_array_equal(
        data.RandomCrop(8, 2)(images[::2, ::2, ::-2], rng()),
        data.RandomCrop(8, 2)(images[::2, ::2, ::-2].copy(), rng()),
    )


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest():
    images = random_images(2000)
    flipped = data.RandomHorizontalFlip()(images, rng())
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (flipped == images).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 900 < mirrored.sum() < 1100
    np.testing.assert_array_equal(data.RandomHorizontalFlip(0)(images, rng()), images)
    np.testing.assert_array_equal(data.RandomHorizontalFlip(1)(images, rng()), images[:, :, ::-1])


def test_normalize_matches_float64():
    images = random_images()
    mean, std = (0.3, 0.5, 0.7), (0.1, 0.2, 0.4)
    out = data.Normalize(mean, std)(images)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, (images / 255 - mean) / std, rtol=1e-5, atol=1e-5)


def test_normalized_images_have_mean_0_and_deviation_1():
    images = random_images(50) // 3 + np.array([0, 50, 100], np.uint8)
    out = data.Normalize(*data.channel_statistics(images))(images).astype(np.float64)
    np.testing.assert_allclose(out.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(out.std(axis=(0, 1, 2)), 1, atol=1e-6)


@pytest.mark.parametrize("shape", [(300, 80, 80, 3), (1, 1, 1, 1), (2, 1, 7, 2)])
def test_channel_statistics_match_numpy(shape):
    images = rng().integers(0, 200, shape).astype(np.uint8)
    images[0, 0, 0] = 255
    mean, std = data.channel_statistics(images)
    pixels = images.reshape(-1, shape[3]).astype(np.int64)  # exact; NumPy's float mean is not
    expected_mean = pixels.sum(axis=0) / len(pixels) / 255
    variance = (len(pixels) * (pixels**2).sum(axis=0) - pixels.sum(axis=0) ** 2) / len(pixels) ** 2
    expected_std = np.sqrt(variance) / 255
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-12)
    np.testing.assert_allclose(std, np.where(expected_std > 0, expected_std, 1), rtol=1e-12)


def test_compose_applies_in_order():
    compose = data.Compose(
        [lambda images, generator: images + 1, lambda images, generator: images * 2]
    )
    assert compose(np.array([1]), rng()).tolist() == [4]


def test_transforms_depend_only_on_the_generator_and_do_not_modify_their_input():
    images = random_images(32, 32, 32)
    before = images.copy()
    transform = data.Compose(
        [
            data.RandomCrop(32, 4),
            data.RandomHorizontalFlip(),
            data.Normalize((0.5,) * 3, (0.2,) * 3),
        ]
    )
    one, same, other = (
        transform(images, rng(1)),
        transform(images, rng(1)),
        transform(images, rng(2)),
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    np.testing.assert_array_equal(images, before)
    for step in transform.transforms:
        step(images, rng(1))[:] = 0
        np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: data.RandomCrop(0),
        lambda: data.RandomCrop(8, -1),
        lambda: data.RandomCrop(8, 1, "wrap"),
        lambda: data.RandomHorizontalFlip(1.5),
        lambda: data.Compose(data.RandomHorizontalFlip()),
        lambda: data.Compose(["flip"]),
        lambda: data.Normalize((0.5,), (0.0,)),
        lambda: data.Normalize((0.5, 0.5), (0.1,)),
        lambda: data.Normalize((0.5,), (float("nan"),)),
    ],
)
def test_invalid_arguments_are_refused(make):
    with pytest.raises(ArgumentError):
        make()


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (data.RandomCrop(20), (2, 8, 8, 3)),
        (data.RandomCrop(8, 8, "reflect"), (2, 8, 8, 3)),
        (data.RandomCrop(8), (8, 8, 3)),
        (data.RandomHorizontalFlip(), (8, 8, 3)),
        (data.Normalize((0.5,), (0.5,)), (2, 8, 8, 3)),
    ],
)
def test_images_that_do_not_fit_are_refused(transform, shape):
    with pytest.raises(ShapeError, match=type(transform).__name__):
        transform(np.zeros(shape, np.uint8), rng())


def test_statistics_of_no_images_are_refused():
    with pytest.raises(ShapeError, match="no pixels"):
        data.channel_statistics(np.zeros((0, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("function", [data.channel_statistics, data.color_components])
@pytest.mark.parametrize("images", [np.zeros((2, 4, 4, 3), np.int64), [[1, 2]], None])
def test_statistics_of_what_is_neither_uint8_nor_float_are_refused_by_name(function, images):
    with pytest.raises(DtypeError, match=f"{function.__name__}: expected an array of uint8 or flo"):
        function(images)


@pytest.mark.parametrize("scale", [1 / 255, 1.0, 40.0])
def test_floats_of_any_scale_normalise_to_what_their_bytes_do(scale):
    images = random_images(50) // 3 + np.array([0, 50, 100], np.uint8)
    floats = (images * scale).astype(np.float32)
    of_bytes = data.Normalize(*data.channel_statistics(images))(images)
    of_floats = data.Normalize(*data.channel_statistics(floats))(floats)
    assert of_floats.dtype == np.float32
    np.testing.assert_allclose(of_floats, of_bytes, atol=1e-4)


def test_normalize_divides_integers_of_any_width_by_255_and_floats_by_nothing():
    images, normalize = random_images(), data.Normalize((0.3, 0.5, 0.7), (0.1, 0.2, 0.4))
    expected = normalize(images)
    np.testing.assert_array_equal(normalize(images.astype(np.int64)), expected)
    np.testing.assert_allclose(normalize(images / 255), expected, atol=1e-4)


def test_float_statistics_match_float64_over_chunks():
    images = 1000 + np.random.default_rng(0).random((300, 64, 64, 2), np.float32)
    mean, std = data.channel_statistics(images)
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(std, images.std(axis=(0, 1, 2), dtype=np.float64), rtol=1e-9)
    assert data.channel_statistics(np.full((2, 4, 4, 1), 7.5))[1] == (1.0,)


# --- transforms of one and of two arguments ---


class TakesImages:
    def __call__(self, images):
        return images + 1


def needs_two(images, random):
    return images + random.integers(1, 2, images.shape, images.dtype)


def strength_has_a_default(images, strength=1):
    return images + strength


def generator_has_a_default(images, generator=None):
    return needs_two(images, generator)


def any_number(*arguments):
    return needs_two(*arguments)


@pytest.mark.parametrize(
    "transform",
    [
        lambda images: images + 1,
        TakesImages(),
        strength_has_a_default,
        needs_two,
        generator_has_a_default,
        any_number,
    ],
)
def test_a_transform_gets_the_generator_only_if_it_takes_it(transform):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    dataset = data.Dataset(images, [0, 1, 0, 1])
    nested = data.Compose([data.Compose([transform]), transform])
    for whole, expected in ((transform, 1), (nested, 2)):
        loader = data.DataLoader(dataset, 2, transform=whole)
        for part in (loader, loader.part(0, 2)):
            assert all((batch == expected).all() for batch, _ in part)


def test_a_ufunc_is_a_transform():
    loader = data.DataLoader(data.Dataset(np.full((2, 4, 4, 1), 9.0), [0, 1]), 2, transform=np.sqrt)
    [(images, _)] = loader
    assert (images == 3).all()


def test_compose_refuses_a_transform_of_three_arguments():
    with pytest.raises(ArgumentError, match=r"Compose: .* got <lambda>\(a, b, c\)"):
        data.Compose([lambda a, b, c: a])
