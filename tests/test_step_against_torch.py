"""A whole training step against PyTorch's, in float64."""

import numpy as np
import pytest

import gpucnn
from gpucnn import models, nn, ops, optim

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")


def every_layer() -> nn.Sequential:
    """A network with most kinds of layers that PyTorch has too."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),  # the norm would cancel a bias
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(8, 12, (5, 3), stride=(1, 2), padding=(2, 1), groups=2),
        nn.LocalResponseNorm(5, 0.02, 0.75, 2.0),
        nn.LeakyReLU(0.1),
        nn.Conv2d(12, 12, 3, dilation=2, padding=2, bias=False),
        nn.GELU(),
        nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
        nn.Conv2d(12, 16, 1),
        nn.Sigmoid(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(32, 20),
        nn.Tanh(),
        nn.Linear(20, 5),
    )


def torch_layer(layer: nn.Module):
    """The same layer in PyTorch, with the same weights in its layout."""
    t = torch.nn
    if isinstance(layer, nn.Conv2d):
        other = t.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, layer.groups, layer.bias is not None,
        )  # fmt: skip
        fill(other.weight, layer.weight.data.transpose(0, 3, 1, 2))
    elif isinstance(layer, nn.Linear):
        other = t.Linear(layer.in_features, layer.out_features)
        fill(other.weight, layer.weight.data)
    elif isinstance(layer, nn.BatchNorm2d):
        other = t.BatchNorm2d(layer.num_features).double()
        fill(other.weight, layer.weight.data)
        fill(other.bias, layer.bias.data)
        return other
    elif isinstance(layer, nn.LocalResponseNorm):
        # PyTorch divides alpha by size
        return t.LocalResponseNorm(layer.size, layer.alpha * layer.size, layer.beta, layer.k)
    elif isinstance(layer, nn.AvgPool2d):
        return t.AvgPool2d(
            layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad
        )
    elif isinstance(layer, nn.MaxPool2d):
        return t.MaxPool2d(
            layer.kernel_size, layer.stride, layer.padding, ceil_mode=layer.ceil_mode
        )
    elif isinstance(layer, nn.Flatten):
        return Flatten()
    elif isinstance(layer, nn.LeakyReLU):
        return t.LeakyReLU(layer.negative_slope)
    elif isinstance(layer, nn.GELU):
        return t.GELU(layer.approximate)
    elif isinstance(layer, nn.Dropout):
        return t.Identity()
    else:
        return getattr(t, type(layer).__name__)()
    if layer.bias is not None:
        fill(other.bias, layer.bias.data)
    return other.double()


class Flatten(torch.nn.Module):
    """Flatten in gpucnn's order: row, column, channel."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).reshape(len(x), -1)


def fill(parameter, values):
    parameter.data = torch.tensor(np.ascontiguousarray(values)).double()


def relative(ours, theirs) -> float:
    theirs = theirs.detach().numpy()
    if theirs.ndim == 4:
        theirs = theirs.transpose(0, 2, 3, 1)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize(
    ("model", "side", "batch"),
    [
        (every_layer(), 13, 4),
        (models.alexnet_cifar10(), 32, 3),
        (models.alexnet_cifar10_bn(), 32, 3),
    ],
    ids=["every layer", "alexnet_cifar10", "alexnet_cifar10_bn"],
)
@pytest.mark.parametrize("algorithm", ["auto", "exact"])
def test_loss_gradients_and_updated_parameters_agree_to_1e_12(model, side, batch, algorithm, rng):
    ops.set_conv_algorithm(algorithm)
    model = model.astype(np.float64)
    for layer in model:
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.data[...] = 0
            layer.running_var.data[...] = 1
    twin = torch.nn.Sequential(*map(torch_layer, model))
    images = rng.standard_normal((batch, side, side, 3))
    labels = rng.integers(0, 5, batch)

    x = gpucnn.tensor(images, requires_grad=True)
    optimizer = optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
    loss = ops.cross_entropy(model(x), labels)
    loss.backward()
    gradients = [p.grad.copy() for p in model.parameters()]
    optimizer.step()

    xt = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
    oracle = torch.optim.SGD(twin.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
    expected = torch.nn.functional.cross_entropy(twin(xt), torch.tensor(labels))
    expected.backward()
    expected_gradients = [p.grad.clone() for p in twin.parameters()]
    oracle.step()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert relative(x.grad, xt.grad) < 1e-12
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert relative(ours, theirs) < 1e-12
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert relative(p.data, q) < 1e-12
    for layer, other in zip(model, twin, strict=True):
        if isinstance(layer, nn.BatchNorm2d):
            assert relative(layer.running_mean.data, other.running_mean) < 1e-12
            assert relative(layer.running_var.data, other.running_var) < 1e-12


@pytest.fixture(autouse=True)
def _algorithm_back_to_auto():
    yield
    ops.set_conv_algorithm("auto")
