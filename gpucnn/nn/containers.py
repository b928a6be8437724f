"""Sequential and ModuleList: modules in a list.  ModuleDict: modules in a dict."""

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Self

from gpucnn.errors import ArgumentError
from gpucnn.nn.activations import GELU, ReLU
from gpucnn.nn.layers import Conv2d, Linear, MaxPool2d
from gpucnn.nn.module import Module
from gpucnn.nn.normalization import BatchNorm1d, BatchNorm2d


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

    def insert(self, index: int, module: Module) -> Self:
        """Put a module before the one at `index`; return self."""
        self.layers[index:index] = self._checked([module], index)
        return self

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

    def add_module(self, name: str, module: Module) -> None:
        """append(module), if `name` is the next index, such as "3"; else ArgumentError."""
        if name != str(len(self)):
            raise ArgumentError(
                f"{type(self).__name__}.add_module: expected the next index, {len(self)}, as the "
                f"name, got {name!r}\n  its modules are numbered: use append"
            )
        self.append(module)

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


class ModuleDict(Module):
    """A dict of modules, whose names are the keys: ModuleDict({"left": nn.Linear(3, 2)}).

    A plain dict as an attribute holds modules too, under the same names.  A ModuleDict checks its
    items, and can be moved, saved and printed by itself.  It cannot be called.

    Raises ArgumentError for a key that is not a string without dots, or a value that is not a
    module.
    """

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()) -> None:
        self.layers: dict[str, Module] = {}
        self.update(modules)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(key, module) of each item; a subclass's other modules follow under their names."""
        for name, child in super().named_children():
            yield name.removeprefix("layers."), child

    def add_module(self, name: str, module: Module) -> None:
        """The same as self[name] = module."""
        self[name] = module

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Set the modules of a mapping, or of (key, module) pairs."""
        for key, module in _checked_items(modules).items():
            self.layers[key] = module

    def pop(self, key: str) -> Module:
        """Remove the module at `key` and return it; KeyError if there is none."""
        return self.layers.pop(key)

    def clear(self) -> None:
        """Remove all modules."""
        self.layers.clear()

    def keys(self) -> KeysView[str]:
        """The keys, in the order of insertion."""
        return self.layers.keys()

    def values(self) -> ValuesView[Module]:
        """The modules, in the order of insertion."""
        return self.layers.values()

    def items(self) -> ItemsView[str, Module]:
        """(key, module) pairs, in the order of insertion."""
        return self.layers.items()

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __contains__(self, key: object) -> bool:
        return key in self.layers

    def __getitem__(self, key: str) -> Module:
        return self.layers[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self.update({key: module})

    def __delitem__(self, key: str) -> None:
        del self.layers[key]


def _checked_items(modules: Any) -> dict[str, Module]:
    """The items of a ModuleDict."""
    try:
        found = dict(modules.items() if isinstance(modules, ModuleDict) else modules)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"ModuleDict: expected a dict of modules, got a {type(modules).__name__}"
        ) from None
    for key, module in found.items():
        if not isinstance(key, str) or key == "" or "." in key:
            raise ArgumentError(f"ModuleDict: expected a key without dots, got {key!r}")
        if not isinstance(module, Module):
            raise ArgumentError(f"ModuleDict: expected modules, {key} is a {type(module).__name__}")
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
        run while its output is in the cache.  Linear and batch normalisation are fused with the
        ReLU that follows, batch normalisation also with the exact GELU.  A layer with a hook runs
        by itself, and so does every layer inside `nn.observe`.
        """
        waiting = list(reversed(self.layers))
        while waiting:
            layer = waiting.pop()
            if not any(_can_fuse(layer, kind) for kind in _FUSING):
                x = layer(x)
                continue
            relu = bool(waiting) and _can_fuse(waiting[-1], ReLU)
            if relu:
                waiting.pop()
            following = waiting[-1] if waiting else None
            if isinstance(layer, _NORMS) and not relu and _is_exact_gelu(following):
                waiting.pop()
                x = layer(x, False, True)
                continue
            if type(layer) is not Conv2d:
                x = layer(x, relu)
                continue
            pool = following if _can_fuse(following, MaxPool2d) else None
            if pool is not None:
                waiting.pop()
            x = layer(x, relu, pool)
        return x

    def __getitem__(self, index: int | slice) -> Module:
        picked = self.layers[index]
        return Sequential(*picked) if isinstance(picked, list) else picked


_NORMS = (BatchNorm1d, BatchNorm2d)
_FUSING = (Conv2d, Linear, *_NORMS)  # with a ReLU


def _can_fuse(layer: Module | None, kind: type[Module]) -> bool:
    """Whether `layer` is exactly a `kind`, with its forward, and nothing watches its output."""
    return type(layer) is kind and "forward" not in vars(layer) and not layer._is_watched()


def _is_exact_gelu(layer: Module | None) -> bool:
    return _can_fuse(layer, GELU) and getattr(layer, "approximate", "") == "none"
