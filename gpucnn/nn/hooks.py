"""Forward hooks of one module, and observers of all modules."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

Hook = Callable[[Any, tuple[Any, ...], Any], Any]  # (module, args, output): a new output or None
Observer = Callable[[Any, tuple[Any, ...], Any], None]

observers: list[Observer] = []
_keys = itertools.count()


class HookHandle:
    """A registered forward hook: `remove()` unregisters it, and so does the end of `with handle:`.

    Removing it twice does no harm.
    """

    def __init__(self, hooks: dict[int, Hook], hook: Hook) -> None:
        self._hooks, self._key = hooks, next(_keys)
        hooks[self._key] = hook

    def remove(self) -> None:
        self._hooks.pop(self._key, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


@contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Call `observer(module, args, output)` after the forward pass of every module in the block.

    It sees the output after the module's own hooks, and its return value is ignored.
    """
    observers.append(observer)
    try:
        yield
    finally:
        observers.remove(observer)
