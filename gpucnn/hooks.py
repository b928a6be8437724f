"""Handles of hooks, and when backward calls the hooks of a leaf.

A module's forward hooks are in gpucnn.nn.hooks.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Self

_keys = itertools.count()


class HookHandle:
    """A registered hook: `remove()` unregisters it, and so does the end of `with handle:`.

    Removing it twice does no harm.
    """

    def __init__(self, hooks: dict[int, Any], hook: Callable[..., Any]) -> None:
        self._hooks, self._key = hooks, next(_keys)
        hooks[self._key] = hook

    def remove(self) -> None:
        self._hooks.pop(self._key, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


class GradHooks(dict[int, Callable[[Any], object]]):
    """The hooks of one leaf.  A deep copy of the leaf, or a pickle of it, has none."""

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return type(None), ()


class HookedLeaves:
    """The leaves with hooks that one backward pass has reached, until it has finished with them.

    Uses are counted once the pass has reached the first.
    """

    def __init__(self) -> None:
        self._reached: dict[int, Any] = {}  # leaves, by id
        self._uses: Counter[int] | None = None  # by id: in nodes not visited yet

    def reach(self, leaf: Any) -> None:
        """Note that leaf has received a gradient."""
        self._reached[id(leaf)] = leaf

    def finished(self, inputs: Iterable[Any], ahead: Callable[[], Iterable[Any]]) -> list[Any]:
        """The leaves among `inputs`, those of the visited node, that no later node uses.

        ahead() yields the nodes that the pass may still visit.
        """
        if self._uses is None:
            self._uses = Counter(id(x) for node in ahead() for x in node.inputs)
        else:
            self._uses.subtract(map(id, inputs))
        ids = [key for key in dict.fromkeys(map(id, inputs)) if key in self._reached]
        return [self._reached.pop(key) for key in ids if not self._uses[key]]

    def rest(self) -> list[Any]:
        """The leaves still waiting for nodes that the pass has not come to."""
        return list(self._reached.values())
