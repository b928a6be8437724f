import numpy as np
import pytest

import gpucnn
from gpucnn import inspect, models, nn
from gpucnn.errors import ArgumentError, DtypeError, GraphError, ShapeError
from gpucnn.inspect import draw


def linear_model(weights):
    """Score k is the sum of the image times weights[k]."""
    layer = nn.Linear(weights[0].size, len(weights))
    layer.weight.data[...] = weights.reshape(len(weights), -1)
    return nn.Sequential(nn.Flatten(), layer)


class OnePixel(nn.Module):
    """Its only score is 3 times the sum of the channels of pixel (2, 5)."""

    def __init__(self):
        self.scale = nn.Parameter(np.float32([3.0]))

    def forward(self, x):
        return x[:, 2, 5, :].sum(axis=1, keepdims=True) * self.scale


def small_network(rng):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, generator=rng),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, generator=rng),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(20, 3, generator=rng),
    )
    return model.astype(np.float64)


def test_the_input_gradient_of_a_linear_model_is_its_weights(rng):
    weights = rng.standard_normal((3, 4, 5, 2), np.float32)
    images = rng.standard_normal((3, 4, 5, 2), np.float32)
    gradient = inspect.input_gradient(linear_model(weights), images, [2, 0, 2])
    np.testing.assert_array_equal(gradient, weights[[2, 0, 2]])


def test_saliency_is_the_largest_absolute_gradient_of_a_pixel(rng):
    weights = rng.standard_normal((3, 4, 5, 2), np.float32)
    images = rng.standard_normal((2, 4, 5, 2), np.float32)
    maps = inspect.saliency(linear_model(weights), images, 1)
    expected = np.maximum(abs(weights[1, ..., 0]), abs(weights[1, ..., 1]))
    np.testing.assert_array_equal(maps, [expected, expected])


def test_the_input_gradient_is_the_finite_difference_of_the_predicted_score(rng):
    model = small_network(rng)
    images = rng.standard_normal((2, 8, 8, 3))
    gradient = inspect.input_gradient(model, images)
    model.eval()
    chosen = model(gpucnn.tensor(images)).data.argmax(axis=1)
    for _ in range(12):
        n, *place = (rng.integers(size) for size in images.shape)
        ends = []
        for step in (1e-6, -1e-6):
            moved = images.copy()
            moved[(n, *place)] += step
            ends.append(model(gpucnn.tensor(moved)).data[n, chosen[n]])
        assert gradient[(n, *place)] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


def test_grad_cam_by_hand_on_a_linear_head():
    # One 1x1 convolution with two filters: A[..., 0] = x, A[..., 1] = -2 x.  The score is
    # 4 * sum of A[..., 0] + 1 * sum of A[..., 1], so a = (4, 1) and the map relu(4 x - 2 x).
    conv = nn.Conv2d(1, 2, 1, bias=False)
    conv.weight.data[...] = np.float32([1, -2]).reshape(2, 1, 1, 1)
    head = nn.Linear(12, 1, bias=False)
    head.weight.data[...] = np.tile(np.float32([4, 1]), 6)
    x = np.float32([[1, -1, 2], [0, 5, -3]]).reshape(1, 2, 3, 1)
    maps = inspect.grad_cam(nn.Sequential(conv, nn.Flatten(), head), x, classes=0)
    np.testing.assert_array_equal(maps, [[[2, 0, 4], [0, 10, 0]]])


def test_grad_cam_with_global_average_pooling_is_the_class_activation_map(rng):
    # With that head d score / d A[..., k] is w[class, k] / (h w) everywhere (Zhou et al. 2016).
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, generator=rng), nn.ReLU(), nn.GlobalAvgPool2d(), nn.Linear(6, 4)
    )
    images = rng.standard_normal((3, 7, 6, 3), np.float32)
    features = inspect.activations(model, images, ["1"])["1"]
    maps = inspect.grad_cam(model, images, "1", classes=[3, 0, 1])
    weights = model[3].weight.data[[3, 0, 1]]
    expected = (features * weights[:, None, None, :]).sum(axis=3).clip(0) / 20
    np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=1e-6)


def test_grad_cam_uses_the_last_convolution_and_the_predicted_class_by_default(rng):
    model = small_network(rng)
    images = rng.standard_normal((2, 8, 8, 3))
    chosen = model.eval()(gpucnn.tensor(images)).data.argmax(axis=1)
    maps = inspect.grad_cam(model, images)
    assert maps.shape == (2, 2, 2)
    np.testing.assert_array_equal(maps, inspect.grad_cam(model, images, "3", chosen))
    np.testing.assert_array_equal(maps, inspect.grad_cam(model, images, model[3], chosen))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_grad_cam_under_autocast_sums_in_float32(half):
    """64 x 64 gradients of 32, whose sum float16 does not hold, and bfloat16 not exactly."""
    if half == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    conv = nn.Conv2d(1, 1, 1, bias=False)
    conv.weight.data[...] = 1
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(64 * 64, 1, bias=False))
    model.layers[2].weight.data[...] = 32
    with gpucnn.autocast(half):
        maps = inspect.grad_cam(model, np.ones((1, 64, 64, 1), np.float32), classes=0)
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps, np.full((1, 64, 64), 32))


def test_occlusion_of_a_network_that_sees_one_pixel_is_nonzero_only_there(rng):
    images = rng.standard_normal((2, 6, 8, 3), np.float32)
    maps = inspect.occlusion(OnePixel(), images, window=1, stride=1)
    expected = np.zeros((2, 6, 8), np.float32)
    expected[:, 2, 5] = 3 * images[:, 2, 5].sum(axis=1)
    np.testing.assert_allclose(maps, expected, rtol=1e-6)


def test_occlusion_is_the_mean_drop_over_the_squares_that_cover_a_pixel(rng):
    weights = rng.standard_normal((2, 5, 7, 1), np.float32)
    images = rng.standard_normal((1, 5, 7, 1))
    model = linear_model(weights).astype(np.float64)
    maps = inspect.occlusion(model, images, window=3, stride=2, fill=0.5, classes=1, batch_size=4)
    loss = (weights[1] * (images[0] - 0.5))[..., 0]  # the drop when a pixel is covered
    falls, cover = np.zeros((5, 7)), np.zeros((5, 7))
    for i in (0, 2):
        for j in (0, 2, 4):
            falls[i : i + 3, j : j + 3] += loss[i : i + 3, j : j + 3].sum()
            cover[i : i + 3, j : j + 3] += 1
    np.testing.assert_allclose(maps[0], falls / cover, rtol=1e-12, atol=1e-12)


def test_the_last_square_of_an_occlusion_reaches_the_edge(rng):
    weights = np.zeros((1, 8, 8, 1), np.float32)
    weights[0, 7, 7] = 1
    maps = inspect.occlusion(linear_model(weights), np.ones((1, 8, 8, 1), "f4"), 3, 2)
    assert (maps[0, 5:, 5:] > 0).all()
    assert maps[0, :5].max() == 0


@pytest.mark.parametrize(
    "look", [inspect.saliency, inspect.grad_cam, inspect.occlusion, inspect.input_gradient]
)
def test_attribution_does_not_change_the_model(rng, look):
    model = models.alexnet_cifar10_bn(generator=rng)
    model[0].eval()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    images = rng.standard_normal((1, 32, 32, 3), np.float32)
    extra = {"window": 16, "stride": 16} if look is inspect.occlusion else {}
    look(model, images, **extra)
    assert [module.training for module in model] == [False] + [True] * (len(model) - 1)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(np.array_equal(before[name], a) for name, a in model.state_dict().items())


def test_saliency_works_inside_no_grad(rng):
    with gpucnn.no_grad():
        assert inspect.saliency(OnePixel(), np.ones((1, 4, 6, 3), "f4"))[0, 2, 5] == 3


def test_uint8_images_are_refused():
    with pytest.raises(DtypeError, match=r"normalised as in training, got uint8"):
        inspect.saliency(OnePixel(), np.zeros((1, 4, 6, 3), np.uint8))


def test_mistakes_in_the_call_are_explained(rng):
    model, images = small_network(rng), rng.standard_normal((2, 8, 8, 3))
    with pytest.raises(ArgumentError, match="classes are 0 to 2"):
        inspect.saliency(model, images, 3)
    with pytest.raises(ShapeError, match="one for each of 2 images"):
        inspect.saliency(model, images, [0, 1, 2])
    with pytest.raises(ArgumentError, match=r"layer 'conv9' is unknown; this model has 0, 1"):
        inspect.grad_cam(model, images, "conv9")
    with pytest.raises(ArgumentError, match="not part of this model"):
        inspect.grad_cam(model, images, nn.ReLU())
    with pytest.raises(ShapeError, match=r"expected a layer with output \(N, h, w, K\)"):
        inspect.grad_cam(model, images, "7")
    with pytest.raises(ArgumentError, match="has no Conv2d"):
        inspect.grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), images)
    with pytest.raises(ArgumentError, match="1 <= stride <= window <= 8"):
        inspect.occlusion(model, images, window=4, stride=5)
    with pytest.raises(ShapeError, match="N > 0"):
        inspect.saliency(model, images[:0])


def test_a_model_that_ignores_its_images_is_refused():
    class Deaf(nn.Module):
        def forward(self, x):
            return gpucnn.tensor(np.zeros((len(x), 2), np.float32))

    with pytest.raises(GraphError, match="does not depend on the images"):
        inspect.input_gradient(Deaf(), np.ones((1, 4, 4, 3), "f4"))


@pytest.mark.parametrize("look", [inspect.saliency, inspect.grad_cam, inspect.occlusion])
def test_a_picture_has_every_image_above_its_map(rng, tmp_path, look):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    images = rng.standard_normal((3, 8, 8, 3))
    maps = look(small_network(rng), images, path=tmp_path / "maps.png")
    with image.open(tmp_path / "maps.png") as file:
        page = np.asarray(file)
    scale = 12  # 96 pixels for 8
    assert page.shape == (17 * scale, 26 * scale, 4)
    seen = page[::scale, ::scale, :3]
    np.testing.assert_array_equal(seen[:8, :8], draw.pictures(images)[0])
    np.testing.assert_array_equal(seen[9:, 18:], draw.heatmap(draw.resize(maps, 8, 8))[2])
