"""Networks.  Each function builds one; `build` does it by name, as checkpoints need it."""

from collections.abc import Callable
from typing import Any

from gpucnn.errors import ArgumentError
from gpucnn.models.alexnet import alexnet_cifar10, alexnet_cifar10_bn
from gpucnn.nn import Module

BY_NAME: dict[str, Callable[..., Module]] = {
    model.__name__: model for model in (alexnet_cifar10, alexnet_cifar10_bn)
}


def build(name: str, **config: Any) -> Module:
    """The model called `name`, built with `config`.  Raises ArgumentError for an unknown name."""
    if name not in BY_NAME:
        raise ArgumentError(f"model {name!r} is unknown; expected one of {', '.join(BY_NAME)}")
    return BY_NAME[name](**config)


__all__ = ["BY_NAME", "alexnet_cifar10", "alexnet_cifar10_bn", "build"]
