"""Sequential: modules one after another."""

from collections.abc import Iterator
from typing import Any

from gpucnn.errors import ArgumentError
from gpucnn.nn.layers import Conv2d, MaxPool2d, ReLU
from gpucnn.nn.module import Module, observed


class Sequential(Module):
    """Modules one after another; indexing and slicing give modules back.

    Raises ArgumentError for what is no module: a list of them, a function.
    """

    def __init__(self, *layers: Module) -> None:
        for i, layer in enumerate(layers):
            if not isinstance(layer, Module):
                raise ArgumentError(
                    f"Sequential: expected modules, layer {i} is a {type(layer).__name__}\n"
                    "  pass a list as Sequential(*layers), and a function as a layer of its own"
                )
        self.layers = list(layers)

    def forward(self, x: Any) -> Any:
        """Each layer on what the one before gave.

        A convolution does what a ReLU, or a ReLU and a MaxPool2d, after it would do while its
        values are still at hand; not while somebody observes what single layers give.
        """
        waiting = list(reversed(self.layers))
        while waiting:
            layer = waiting.pop()
            if type(layer) is not Conv2d or observed():
                x = layer(x)
                continue
            relu = bool(waiting) and type(waiting[-1]) is ReLU
            if relu:
                waiting.pop()
            following = waiting[-1] if waiting else None
            pool = following if type(following) is MaxPool2d else None
            if pool is not None:
                waiting.pop()
            x = layer(x, relu, pool)
        return x

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(number, layer) of each layer; then what a subclass has beside them, by name."""
        for name, child in super().named_children():
            yield name.removeprefix("layers."), child

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)

    def __getitem__(self, index: int | slice) -> Module:
        picked = self.layers[index]
        return Sequential(*picked) if isinstance(picked, list) else picked
