"""Sequential: modules one after another."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from gpucnn.nn.layers import Conv2d, ReLU
from gpucnn.nn.module import Module, observed


class Sequential(Module):
    """Modules one after another; indexing and slicing give modules back."""

    def __init__(self, *layers: Module) -> None:
        self.layers = list(layers)

    def forward(self, x: Any) -> Any:
        """Each layer on what the one before gave; a ReLU is done inside the convolution before it,
        where its values are still at hand, unless somebody observes the layers."""
        clipped = False
        for layer, following in zip_longest(self.layers, self.layers[1:]):
            if clipped:
                clipped = False
            elif type(layer) is Conv2d and type(following) is ReLU and not observed():
                x, clipped = layer.forward(x, relu=True), True
            else:
                x = layer(x)
        return x

    def children(self) -> Iterator[tuple[str, Module]]:
        for i, layer in enumerate(self.layers):
            yield str(i), layer

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)

    def __getitem__(self, index: int | slice) -> Module:
        picked = self.layers[index]
        return Sequential(*picked) if isinstance(picked, list) else picked
