"""Networks by name, for checkpoints and the command line."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from gpucnn.device import device
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
from gpucnn.models.speedrun import speedrun_cifar10
from gpucnn.models.vgg import vgg16_cifar
from gpucnn.nn import Module

# The side of the square images that each network is made for, in pixels
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
    speedrun_cifar10: 32,
    vgg16_cifar: 32,
}
BY_NAME: dict[str, Callable[..., Module]] = {model.__name__: model for model in (*_SIDES, mlp)}


def build(name: str, **config: Any) -> Module:
    """Build the model called `name` with the arguments `config`.

    With a `generator`, weights are drawn from it, and each Dropout layer gets one of its own,
    spawned from it: training then uses no global generator.

    Raises ArgumentError for an unknown name, or arguments that the model does not have.
    """
    _bind(name, config)
    return BY_NAME[name](**config)


def outline(name: str, config: Mapping[str, Any], sizes: Collection[int] | None = None) -> Module:
    """The model that `build` makes, on the CPU, with zeros for weights that take no memory.

    Use it only to look up modules, names, shapes and dtypes.  It costs nothing and draws no random
    numbers.  sizes are those of the arrays that the model may have: building stops at the first
    weight beyond their number or sum, so that any `config` is safe.

    Raises ArgumentError as build does, for a model with more arrays or numbers than sizes has, and
    for a config that names weights.
    """
    if "weights" in config:
        raise ArgumentError("config must not name weights: those of the file are loaded")
    with device("cpu"):
        return build(name, generator=_Undrawn(sizes), **config)


class _Undrawn(np.random.Generator):
    """A generator for `outline`: it draws zeros that take no memory."""

    def __init__(self, sizes: Collection[int] | None) -> None:
        super().__init__(np.random.PCG64(0))
        self._values: float = math.inf if sizes is None else sum(sizes)
        self._weights: float = math.inf if sizes is None else len(sizes)

    def standard_normal(self, size: Any = None, dtype: Any = float, out: Any = None) -> Any:
        return self._draw(size, dtype)

    def random(self, size: Any = None, dtype: Any = float, out: Any = None) -> Any:
        return self._draw(size, dtype)

    def _draw(self, shape: tuple[int, ...], dtype: Any) -> Any:
        self._values -= math.prod(shape)
        self._weights -= 1
        if self._values < 0 or self._weights < 0:
            raise ArgumentError(f"it has more weights than expected: one of shape {shape}")
        return _zeros(shape, dtype)


class _Zeros(np.ndarray[Any, Any]):
    """Zeros of any shape in the memory of one element; arithmetic returns such zeros again."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return _zeros(np.broadcast_shapes(*map(np.shape, inputs)), self.dtype)

    def astype(self, dtype: Any, *_: Any, **options: Any) -> Any:
        return _zeros(self.shape, dtype)


def _zeros(shape: Any, dtype: Any) -> Any:
    return np.broadcast_to(np.zeros((), dtype), shape).view(_Zeros)


def input_shape(name: str, **config: Any) -> tuple[int, ...]:
    """The shape of one example for the model `name` built with `config`.

    (H, W, C) for images, (features,) for an mlp.  Raises ArgumentError as build does.
    """
    arguments = _bind(name, config)
    if name == "mlp":
        return (arguments["sizes"][0],)
    side = _SIDES[BY_NAME[name]]
    return side, side, arguments["channels"]


def _bind(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """All arguments of the model `name`, defaults included; raises build's errors."""
    if name not in BY_NAME:
        raise ArgumentError(f"model {name!r:.99} is unknown; expected one of {', '.join(BY_NAME)}")
    signature = inspect.signature(BY_NAME[name])
    try:
        bound = signature.bind(**config)
    except TypeError as error:
        raise ArgumentError(
            f"model {name} cannot be built from {config}: {error}\n  expected {name}{signature}"
        ) from None
    bound.apply_defaults()
    return bound.arguments
