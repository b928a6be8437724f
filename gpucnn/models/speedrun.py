"""The network of the fastest known training on CIFAR-10: small, and started close to its end.

A fixed first layer whitens patches of 2x2 pixels.  The other convolutions start with filters that
copy their input, so that whitened pixels reach the last layer from the first step on.
"""

import math
from typing import Any

import numpy as np

from gpucnn import nn
from gpucnn.device import to_device, working_on
from gpucnn.errors import ArgumentError
from gpucnn.models.trained import trained
from gpucnn.tensor import Tensor


class SpeedrunNet(nn.Sequential):
    """What `speedrun_cifar10` builds: layer 0 is the whitening convolution, with frozen weights."""

    def whiten(self, images: Any) -> None:
        """Set the filters of layer 0 to nn.init.whitening of these images (N, H, W, C).

        images are NumPy floats, normalised as in training; 5,000 are plenty.  Call it once, before
        training.  Raises ArgumentError for images with other channels, or not of floats.
        """
        first = self[0]
        if not isinstance(first, nn.Conv2d):
            raise ArgumentError(f"whiten: layer 0 is a {type(first).__name__}, not the convolution")
        weight = first.weight
        filters = nn.init.whitening(images)(weight.shape, np.random.default_rng(0))
        with working_on(weight.device):
            weight.data[...] = to_device(filters, weight.device)
        weight._changed()


class Scale(nn.Module):
    """x times a number, any shape to the same shape."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


def speedrun_cifar10(
    classes: int = 10,
    channels: int = 3,
    generator: np.random.Generator | None = None,
    weights: str | None = None,
) -> SpeedrunNet:
    """Jordan's network for images (N, 32, 32, channels): logits (N, classes); 1,972,792 numbers.

    A 2x2 convolution to 8 * channels, and three blocks of 64, 256 and 256 channels: convolution,
    2x2 max pooling, batch normalisation, GELU, convolution, batch normalisation, GELU.  A 3x3 max
    pooling leaves one pixel; the last layer's outputs are divided by 256.

    The filters of the first layer and the scales of the normalisations are frozen; 1,971,352
    numbers are trained.  Call `model.whiten(images)` before training: until then the first layer
    has random filters and their negatives.  Images are normalised per channel, by
    data.Normalize(*data.channel_statistics(images)): mean 0 and standard deviation 1 over the
    training set.

    weights="default" loads those that come with gpucnn, trained on CIFAR-10, and sets evaluation
    mode; gpucnn.weights.info("speedrun_cifar10") tells classes, normalisation and accuracy.
    Source: Jordan 2024, arXiv 2404.00498, section 3.
    """
    c = 8 * channels
    first = nn.Conv2d(channels, c, 2, weight_init=_with_negatives, generator=generator)
    first.weight.requires_grad = False
    layers: list[nn.Module] = [first, nn.GELU()]  # 31 x 31
    for oc in (64, 256, 256):
        layers += [_conv(c, oc, generator), nn.MaxPool2d(2), _norm(oc), nn.GELU()]
        layers += [_conv(oc, oc, generator), _norm(oc), nn.GELU()]  # 15, 7, 3 pixels
        c = oc
    model = SpeedrunNet(
        *layers,
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.Linear(256, classes, bias=False, weight_init=_of_unit_variance, generator=generator),
        Scale(1 / 256),
    )
    return trained(model, "speedrun_cifar10", weights, classes=classes, channels=channels)


def _conv(c: int, oc: int, generator: np.random.Generator | None) -> nn.Conv2d:
    first = nn.init.dirac_first(_uniform)
    return nn.Conv2d(c, oc, 3, padding=1, bias=False, weight_init=first, generator=generator)


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad = False
    return norm


def _uniform(shape: tuple[int, ...], generator: np.random.Generator) -> nn.init.Weights:
    """Uniform in ±1 / sqrt(fan-in), PyTorch's default for convolutions."""
    return nn.init.kaiming_uniform(shape, generator) * np.float32(1 / math.sqrt(6))


def _of_unit_variance(shape: tuple[int, ...], generator: np.random.Generator) -> nn.init.Weights:
    return nn.init.kaiming_uniform(shape, generator) * np.float32(math.sqrt(shape[1] / 2))


def _with_negatives(shape: tuple[int, ...], generator: np.random.Generator) -> nn.init.Weights:
    half = nn.init.kaiming_normal((shape[0] // 2, *shape[1:]), generator)
    return np.concatenate([half, -half])
