import numpy as np
import pytest

import gpucnn
from gpucnn import inspect, models, nn
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.inspect import draw


class Twice(nn.Module):
    """Runs one layer twice, and never runs another."""

    def __init__(self):
        self.scale = nn.Conv2d(1, 1, 1, bias=False)
        self.scale.weight.data[...] = 3
        self.idle = nn.ReLU()

    def forward(self, x):
        return self.scale(self.scale(x))


def test_activations_are_the_layers_outputs_in_evaluation_mode(rng):
    model = models.alexnet_cifar10_bn(generator=rng)
    images = rng.standard_normal((3, 32, 32, 3), np.float32)
    seen = inspect.activations(model, images, ["3", model[6]], batch_size=2)
    model.eval()
    x = gpucnn.tensor(images)
    expected = {}
    for i, layer in enumerate(model):
        x = layer(x)
        expected[str(i)] = x.data
    assert list(seen) == ["3", "6"]
    for name, values in seen.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-5)


def test_by_default_activations_has_every_layer_without_children_in_order(rng):
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), nn.Flatten())
    seen = inspect.activations(model, rng.standard_normal((2, 4, 4, 1), np.float32))
    assert {name: a.shape for name, a in seen.items()} == {
        "0.0": (2, 2, 2, 2),
        "0.1": (2, 2, 2, 2),
        "1": (2, 8),
    }


def test_a_layer_that_runs_twice_has_its_last_output():
    images = np.ones((1, 2, 2, 1), np.float32)
    seen = inspect.activations(Twice(), images)
    assert list(seen) == ["scale"]
    assert (seen["scale"] == 9).all()
    with pytest.raises(ArgumentError, match="'idle' did not run"):
        inspect.activations(Twice(), images, ["idle"])


def test_first_layer_filters_returns_the_weights_of_the_first_convolution():
    model = models.alexnet_cifar10()
    filters = inspect.first_layer_filters(model)
    np.testing.assert_array_equal(filters, model[0].weight.data)
    with pytest.raises(ArgumentError, match="has no Conv2d"):
        inspect.first_layer_filters(nn.Sequential(nn.ReLU()))


def test_filters_of_3_channels_are_in_colour_and_others_are_a_grey_tile_per_channel(rng):
    colour = inspect.filter_pictures(rng.standard_normal((6, 3, 5, 3)))
    assert colour.shape == (6, 3, 5, 3)
    assert (colour.reshape(6, -1).min(axis=1) == 0).all()
    assert (colour.reshape(6, -1).max(axis=1) == 255).all()
    filters = rng.standard_normal((4, 3, 5, 2))
    grey = inspect.filter_pictures(filters)
    assert grey.shape == (8, 3, 5, 3)
    np.testing.assert_array_equal(grey[5], draw.pictures(filters[2:3, :, :, 1:2])[0])


def test_the_page_of_filters_has_a_tile_for_each(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    inspect.first_layer_filters(models.alexnet_cifar10(), tmp_path / "filters.png")
    with image.open(tmp_path / "filters.png") as file:
        assert (
            file.size == ((8 * 4 - 1) * 32,) * 2
        )  # 64 tiles of 3 pixels, gaps of 1, enlarged 32 times


def test_feature_maps_are_the_layers_output_and_drawn_for_the_first_image(rng, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten())
    images = rng.standard_normal((2, 10, 10, 3), np.float32)
    maps = inspect.feature_maps(model, images, "0", tmp_path / "maps.png", max_channels=4)
    np.testing.assert_allclose(maps, model[0](gpucnn.tensor(images)).data, rtol=1e-6)
    with image.open(tmp_path / "maps.png") as file:
        page = np.asarray(file)[::12, ::12, :3]
    np.testing.assert_array_equal(page[:8, 9:17], draw.heatmap(maps[:1, :, :, 1])[0])
    assert page.shape == (17, 17, 3)
    with pytest.raises(ShapeError, match="'1' returns"):
        inspect.feature_maps(model, images, "1")


def test_the_strongest_images_are_found_by_a_slow_search(rng):
    model = nn.Sequential(nn.Conv2d(2, 4, 3, generator=rng))
    images = rng.standard_normal((11, 6, 7, 2), np.float32)
    found = inspect.strongest_images(model, images, "0", [3, 1], k=3, batch_size=4)
    y = model(gpucnn.tensor(images)).data
    for row, channel in enumerate((3, 1)):
        peaks = [(y[i, :, :, channel].max(), i) for i in range(11)]
        best = sorted(peaks, reverse=True)[:3]
        assert list(found.images[row]) == [i for _, i in best]
        np.testing.assert_allclose(found.values[row], [v for v, _ in best], rtol=1e-6)
        for i, down, across in zip(
            found.images[row], found.rows[row], found.columns[row], strict=True
        ):
            assert y[i, down, across, channel] == y[i, :, :, channel].max()


def test_ties_keep_the_order_of_the_images_and_k_may_exceed_their_number(tmp_path):
    images = np.float32([1, 2, 1, 2]).reshape(4, 1, 1, 1)
    model = nn.Sequential(nn.Flatten())
    found = inspect.strongest_images(model, images, "0", [0], k=9, path=tmp_path / "page.png")
    assert found.images.tolist() == [[1, 3, 0, 2]]
    assert found.values.tolist() == [[2, 2, 1, 1]]
    assert not found.rows.any()
    assert not found.columns.any()
    assert (tmp_path / "page.png").stat().st_size > 0


def test_invalid_channels_are_refused():
    images, model = np.ones((2, 1, 1, 1), np.float32), nn.Sequential(nn.Flatten())
    for channels in ([1], [-1], []):
        with pytest.raises(ArgumentError, match="channels 0 to 0"):
            inspect.strongest_images(model, images, "0", channels)
    with pytest.raises(ArgumentError, match="k must be at least 1"):
        inspect.strongest_images(model, images, "0", [0], k=0)


def test_pixel_layers_are_relus_with_spatial_output_or_else_all_layers_with_one():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(3, 2), nn.ReLU(),
    )  # fmt: skip
    images = np.zeros((1, 6, 6, 1), np.float32)
    assert inspect.pixel_layers(model, images) == ["1"]  # the other outputs have one pixel, or none
    assert inspect.pixel_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh()), images) == ["0", "1"]


def test_before_relu_returns_the_layer_before_it_if_the_shapes_match():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2))
    images = np.zeros((1, 6, 6, 1), np.float32)
    assert inspect.before_relu(model, images, "1") == "0"
    assert inspect.before_relu(model, images, "2") == "2"  # its input has another shape
    assert inspect.before_relu(model, images, "0") == "0"
    with pytest.raises(ArgumentError, match=r"layer '3' did not run\n  expected one of 0, 1, 2"):
        inspect.before_relu(model, images, "3")
