import io
import subprocess
import sys

import numpy as np
import pytest

from gpucnn import inspect
from gpucnn.errors import ArgumentError, MissingExtra, ShapeError
from gpucnn.inspect import draw


def test_pictures_are_rescaled_individually():
    x = np.float32([[-1, 0, 1], [5, 5, 5]]).reshape(2, 1, 3, 1)
    seen = draw.pictures(x)
    assert seen.dtype == np.uint8
    assert seen[0, 0].tolist() == [[0] * 3, [128] * 3, [255] * 3]
    assert (seen[1] == 128).all()
    kept = np.arange(6, dtype=np.uint8).reshape(1, 1, 2, 3)
    assert draw.pictures(kept) is kept
    with pytest.raises(ShapeError, match=r"got \(1, 2, 2, 2\)"):
        draw.pictures(np.zeros((1, 2, 2, 2)))


def test_an_outlier_is_clipped_and_other_pixels_stay(rng):
    x = rng.standard_normal((2, 8, 8, 3)).clip(-2, 2)
    x[0, 0, 0, 0] = 100
    seen = draw.clip_outliers(x)
    assert seen[0, 0, 0, 0] == pytest.approx(x[0].mean() + 2.5 * x[0].std())
    np.testing.assert_array_equal(seen[0].ravel()[1:], x[0].ravel()[1:])


def test_resizing_is_bilinear_between_pixel_centres():
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    maps = np.random.default_rng(1).standard_normal((2, 4, 5))
    for size in ((8, 15), (3, 2), (4, 5), (1, 1)):
        expected = torch.nn.functional.interpolate(
            torch.tensor(maps)[None], size=size, mode="bilinear", align_corners=False
        )
        np.testing.assert_allclose(draw.resize(maps, *size), expected[0].numpy(), atol=1e-12)
    with pytest.raises(ShapeError):
        draw.resize(maps[0], 2, 2)


def test_an_overlay_dims_to_a_fifth_where_the_map_is_0():
    images = np.full((1, 2, 2, 3), 100, np.uint8)
    seen = draw.overlay(images, [[[4.0, -9.0], [2.0, 0.0]]])
    assert seen[0, ..., 0].tolist() == [[100, 20], [60, 20]]
    assert (draw.overlay(images, np.zeros((1, 2, 2))) == 20).all()


def test_a_heatmap_is_dark_at_the_minimum_bright_at_the_maximum_and_white_at_a_symmetric_zero():
    shades = draw.heatmap([[[0.0, 1.0, 7.0]]])[0, 0].astype(int).sum(axis=1)
    assert shades[0] < shades[1] < shades[2]
    low, zero, high = draw.heatmap([[[-1.0, 0.0, 2.0]]], symmetric=True)[0, 0].astype(int)
    assert zero.min() > 240
    assert low[2] > low[0]  # blue
    assert high[0] > high[2]  # red
    assert (draw.heatmap(np.zeros((1, 2, 2)), symmetric=True) > 240).all()


def test_tiles_are_arranged_in_rows_with_transparent_gaps():
    images = np.stack([np.full((2, 3, 3), v, np.uint8) for v in (10, 20, 30)])
    page = draw.tile(images, columns=2)
    assert page.shape == (5, 7, 4)
    assert page[0, 0].tolist() == [10, 10, 10, 255]
    assert page[1, 6, 0] == 20
    assert page[4, 2, 0] == 30
    assert not page[2].any()
    assert not page[:, 3].any()
    assert not page[3:, 4:].any()
    with pytest.raises(ArgumentError, match="at least one picture"):
        draw.tile(images[:0])


def test_a_png_has_the_pixels_enlarged():
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    pixels[..., 3] = 255
    file = io.BytesIO()
    draw.write_png(file, pixels, scale=3)
    back = np.asarray(image.open(file))
    np.testing.assert_array_equal(back[1::3, 1::3], pixels)
    assert back.shape == (6, 9, 4)


def test_matplotlib_is_imported_only_to_draw():
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from gpucnn import inspect, models\n"
        "model = models.alexnet_cifar10()\n"
        "inspect.saliency(model, np.zeros((1, 32, 32, 3), 'f4'))\n"
        "inspect.first_layer_filters(model)\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


def test_a_missing_matplotlib_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"gpucnn\[plot\]"):
        inspect.training_curves(
            [dict.fromkeys(("epoch", "train_loss", "train_accuracy"), 1)], io.BytesIO()
        )
