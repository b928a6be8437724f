"""Networks.  Each function builds one; `build` does it by name, as checkpoints need it."""

import inspect
from collections.abc import Callable
from typing import Any

from gpucnn.errors import ArgumentError
from gpucnn.models.alexnet import (
    alexnet,
    alexnet_cifar10,
    alexnet_cifar10_bn,
    alexnet_keras,
    alexnet_torchvision,
    cuda_convnet_18pct,
)
from gpucnn.models.lenet import lenet, lenet5
from gpucnn.models.mlp import mlp
from gpucnn.models.resnet import resnet18_cifar
from gpucnn.models.vgg import vgg16_cifar
from gpucnn.nn import Module

# The side of the square images that each network of images is made for, in pixels
_SIDES: dict[Callable[..., Module], int] = {
    alexnet: 227,
    alexnet_torchvision: 224,
    alexnet_keras: 227,
    alexnet_cifar10: 32,
    alexnet_cifar10_bn: 32,
    cuda_convnet_18pct: 32,
    lenet: 28,
    lenet5: 28,
    resnet18_cifar: 32,
    vgg16_cifar: 32,
}
BY_NAME: dict[str, Callable[..., Module]] = {model.__name__: model for model in (*_SIDES, mlp)}


def build(name: str, **config: Any) -> Module:
    """The model called `name`, built with `config`.

    Raises ArgumentError for an unknown name, or a config that the model does not take.
    """
    builder = _builder(name)
    try:
        inspect.signature(builder).bind(**config)
    except TypeError as error:
        raise ArgumentError(
            f"model {name} cannot be built from {config}: {error}\n"
            f"  it is {name}{inspect.signature(builder)}"
        ) from None
    return builder(**config)


def input_shape(name: str, **config: Any) -> tuple[int, int, int]:
    """(H, W, C) of the images that the model `name`, built with `config`, takes.

    Raises ArgumentError for an unknown name, or a model that does not take images.
    """
    builder = _builder(name)
    if builder not in _SIDES:
        raise ArgumentError(f"model {name} takes vectors, not images of one size")
    usual = inspect.signature(builder).parameters["channels"].default
    return _SIDES[builder], _SIDES[builder], config.get("channels", usual)


def _builder(name: str) -> Callable[..., Module]:
    if name not in BY_NAME:
        raise ArgumentError(f"model {name!r} is unknown; expected one of {', '.join(BY_NAME)}")
    return BY_NAME[name]


__all__ = [
    "BY_NAME",
    "alexnet",
    "alexnet_cifar10",
    "alexnet_cifar10_bn",
    "alexnet_keras",
    "alexnet_torchvision",
    "build",
    "cuda_convnet_18pct",
    "input_shape",
    "lenet",
    "lenet5",
    "mlp",
    "resnet18_cifar",
    "vgg16_cifar",
]
