"""Sequential and ModuleList: modules in a list."""

from collections.abc import Iterable, Iterator
from typing import Any, Self

from gpucnn.errors import ArgumentError
from gpucnn.nn.activations import ReLU
from gpucnn.nn.layers import Conv2d, MaxPool2d
from gpucnn.nn.module import Module


class ModuleList(Module):
    """A list of modules, named by their indices: "0", "1", ...

    A plain list as an attribute holds modules too, under the same names.  A ModuleList checks its
    items, and can be moved, saved and printed by itself.  It cannot be called.

    Raises ArgumentError for an item that is not a module.
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.layers: list[Module] = []
        self.extend(modules)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(index, module) of each item; a subclass's other modules follow under their names."""
        for name, child in super().named_children():
            yield name.removeprefix("layers."), child

    def append(self, module: Module) -> Self:
        """Add a module at the end; return self."""
        return self.extend([module])

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end; return self."""
        self.layers += self._checked(modules, len(self.layers))
        return self

    def insert(self, index: int, module: Module) -> None:
        """Put a module before the one at `index`."""
        self.layers[index:index] = self._checked([module], index)

    def pop(self, index: int = -1) -> Module:
        """Remove the module at `index` and return it."""
        return self.layers.pop(index)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)

    def __getitem__(self, index: int | slice) -> Module:
        picked = self.layers[index]
        return ModuleList(picked) if isinstance(picked, list) else picked

    def __setitem__(self, index: int, module: Module) -> None:
        self.layers[index] = self._checked([module], index)[0]

    def __delitem__(self, index: int | slice) -> None:
        del self.layers[index]

    def _checked(self, modules: Any, first: int) -> list[Module]:
        """`modules` as a list; `first` is the index of its first item, for the error."""
        try:
            found: list[Any] = list(modules)
        except TypeError:
            raise ArgumentError(
                f"{type(self).__name__}: expected a list of modules, got a {type(modules).__name__}"
            ) from None
        for i, module in enumerate(found, first):
            if not isinstance(module, Module):
                raise ArgumentError(
                    f"{type(self).__name__}: expected modules, layer {i} is a "
                    f"{type(module).__name__}\n"
                    "  unpack a list of modules with *; wrap a function in a Module"
                )
        return found


class Sequential(ModuleList):
    """Modules applied one after another: Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).

    Indexing gives a module, slicing another Sequential of the same modules.  The input goes into
    the first module, each output into the next one; without modules the input is returned.

    Raises ArgumentError for an argument that is not a module, such as a list or a function.
    """

    def __init__(self, *layers: Module) -> None:
        super().__init__(layers)

    def forward(self, x: Any) -> Any:
        """The output of the last module.

        A Conv2d is fused with the ReLU, the MaxPool2d or both, in this order, that follow it: they
        run while its output is in the cache.  A layer with a hook runs by itself, and so does every
        layer inside `nn.observe`.
        """
        waiting = list(reversed(self.layers))
        while waiting:
            layer = waiting.pop()
            if not _can_fuse(layer, Conv2d):
                x = layer(x)
                continue
            relu = bool(waiting) and _can_fuse(waiting[-1], ReLU)
            if relu:
                waiting.pop()
            following = waiting[-1] if waiting else None
            pool = following if _can_fuse(following, MaxPool2d) else None
            if pool is not None:
                waiting.pop()
            x = layer(x, relu, pool)
        return x

    def __getitem__(self, index: int | slice) -> Module:
        picked = self.layers[index]
        return Sequential(*picked) if isinstance(picked, list) else picked


def _can_fuse(layer: Module | None, kind: type[Module]) -> bool:
    """Whether `layer` is exactly a `kind` and nothing watches its output."""
    return type(layer) is kind and not layer._is_watched()
