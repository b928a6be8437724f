"""Every AlexNet: exact parameter counts, and the sizes of the layers' outputs."""

import sys

import numpy as np
import pytest
from devices import assert_close, tensor

import gpucnn
from gpucnn import models, nn
from gpucnn.models.alexnet import MapResponseNorm

COUNTS = [  # model, configuration, all parameters, those not trained
    ("alexnet", {}, 60_965_224, 0),
    ("alexnet", {"groups": 1}, 62_378_344, 0),
    ("alexnet_torchvision", {}, 61_100_840, 0),
    ("alexnet_keras", {}, 74_822_466, 2_752),
    ("alexnet_cifar10", {}, 7_506_762, 0),
    ("alexnet_cifar10_bn", {}, 7_510_218, 2_304),
    ("cuda_convnet_18pct", {}, 89_578, 0),
]


@pytest.mark.parametrize(("name", "config", "count", "fixed"), COUNTS)
def test_parameter_counts_are_exact(name, config, count, fixed):
    model = models.build(name, **config)
    assert sum(array.size for array in model.state_dict().values()) == count
    assert sum(buffer.size for _, buffer in model.named_buffers()) == fixed


def test_the_docstring_table_has_the_same_counts():
    table = sys.modules["gpucnn.models.alexnet"].__doc__
    for name, config, count, _ in COUNTS:
        call = f"`{name}({', '.join(f'{k}={v}' for k, v in config.items())})`".replace("()", "")
        row = next(line for line in table.splitlines() if call in line)
        assert f" {count:,} " in row


def shapes(model, shape, kind):
    layers = nn.summary(model, shape).layers
    return [layer.output_shape for layer in layers if layer.layer.startswith(kind)]


def test_alexnet_of_2012_has_its_sizes_groups_and_initialisation():
    model = models.alexnet(classes=5)
    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    dense = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert [layer.groups for layer in convolutions] == [1, 2, 1, 2, 2]
    assert [float(layer.bias.data.mean()) for layer in convolutions] == [0, 1, 0, 1, 1]
    assert [float(layer.bias.data.mean()) for layer in dense] == [1, 1, 0]
    assert all((layer.bias.data == layer.bias.data[0]).all() for layer in [*convolutions, *dense])
    for layer in [*convolutions, *dense]:
        tolerance = 6 * 0.01 / np.sqrt(layer.weight.size)
        assert abs(layer.weight.data.mean()) < tolerance
        assert abs(layer.weight.data.std() - 0.01) < tolerance
    assert shapes(model, (227, 227, 3), "Conv2d") == [
        (55, 55, 96), (27, 27, 256), (13, 13, 384), (13, 13, 384), (13, 13, 256)
    ]  # fmt: skip
    assert shapes(model, (227, 227, 3), "MaxPool2d") == [(27, 27, 96), (13, 13, 256), (6, 6, 256)]
    assert shapes(model, (227, 227, 3), "Linear") == [(4096,), (4096,), (5,)]


def test_the_lectures_keras_model_has_the_sizes_57_28_13_7():
    model = models.alexnet_keras()
    assert shapes(model, (227, 227, 1), "Conv2d") == [
        (57, 57, 96), (28, 28, 256), (13, 13, 384), (13, 13, 384), (13, 13, 256)
    ]  # fmt: skip
    assert shapes(model, (227, 227, 1), "MaxPool2d") == [(28, 28, 96), (13, 13, 256), (7, 7, 256)]
    assert shapes(model, (227, 227, 1), "Linear") == [(4096,), (4096,), (1000,), (10,)]
    assert [layer.p for layer in model if isinstance(layer, nn.Dropout)] == [0.4] * 3
    windows = [layer.weight.shape[1:3] for layer in model if isinstance(layer, nn.Conv2d)]
    assert windows == [(11, 11), (5, 5), (3, 3), (1, 1), (3, 3)]
    kinds = [type(layer).__name__ for layer in model][:8]
    assert kinds == "Conv2d ReLU BatchNorm2d MaxPool2d Conv2d ReLU BatchNorm2d MaxPool2d".split()


def test_torchvisions_alexnet_takes_224_pixels_and_other_sizes_from_63_up():
    model = models.alexnet_torchvision(classes=3)
    assert shapes(model, (224, 224, 3), "Conv2d") == [
        (55, 55, 64), (27, 27, 192), (13, 13, 384), (13, 13, 256), (13, 13, 256)
    ]  # fmt: skip
    for side in (63, 300):
        assert shapes(model, (side, side, 3), "AdaptiveAvgPool2d") == [(6, 6, 256)]
        assert shapes(model, (side, side, 3), "Linear")[-1] == (3,)


def test_cuda_convnets_pools_overlap_and_round_up():
    model = models.cuda_convnet_18pct()
    assert shapes(model, (32, 32, 3), "MaxPool2d") == [(16, 16, 32)]
    assert shapes(model, (32, 32, 3), "AvgPool2d") == [(8, 8, 32), (4, 4, 64)]
    stds = [float(layer.weight.data.std()) for layer in model if hasattr(layer, "weight")]
    assert np.allclose(stds, [0.0001, 0.01, 0.01, 0.01], rtol=0.1)


def test_map_response_norm_is_its_formula(device, rng):
    x = rng.standard_normal((2, 5, 4, 3))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.empty_like(x)
    for i in range(5):
        for j in range(4):
            mean = (padded[:, i : i + 3, j : j + 3] ** 2).sum(axis=(1, 2)) / 9
            expected[:, i, j] = x[:, i, j] / (1 + 0.5 * mean) ** 0.75
    layer = MapResponseNorm(3, 0.5, 0.75)
    assert_close(layer(tensor(x, device)), expected)
    assert layer.extra_repr() == "size=3, scale=0.5, power=0.75"


def test_alexnet_of_2012_agrees_with_pytorch(rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    F = torch.nn.functional
    model = models.alexnet(classes=5, generator=rng).eval()
    x = rng.standard_normal((1, 227, 227, 3), dtype=np.float32)
    with gpucnn.no_grad():
        actual = model(gpucnn.tensor(x)).numpy()
    weights = [torch.tensor(p.data) for p in model.parameters()]
    filters = [w.permute(0, 3, 1, 2) for w in weights[:10:2]]
    with torch.no_grad():
        y = torch.tensor(x.transpose(0, 3, 1, 2))
        for layer, (stride, padding, groups) in enumerate(
            [(4, 0, 1), (1, 2, 2), (1, 1, 1), (1, 1, 2), (1, 1, 2)]
        ):
            y = F.conv2d(y, filters[layer], weights[2 * layer + 1], stride, padding, 1, groups)
            y = y.relu()
            if layer < 2:
                y = F.local_response_norm(y, 5, alpha=5e-4, beta=0.75, k=2.0)
            if layer in (0, 1, 4):
                y = F.max_pool2d(y, 3, 2)
        y = y.permute(0, 2, 3, 1).flatten(1)
        for layer in range(3):
            y = F.linear(y, weights[10 + 2 * layer], weights[11 + 2 * layer])
            y = y.relu() if layer < 2 else y
    expected = y.numpy()
    assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()
