"""The arrays that a recorded graph keeps alive."""

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from gpucnn.device import Array, array_module
from gpucnn.tensor import Tensor


def saved_arrays(node: Any) -> Iterator[Array]:
    """The arrays in a Function's `saved`, including those inside containers and objects."""
    waiting = [node.saved]
    seen: set[int] = set()  # objects may refer to each other
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple | list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
        elif hasattr(value, "dtype") and hasattr(value, "base"):
            yield value
        elif not isinstance(value, type | ModuleType) and id(value) not in seen:
            seen.add(id(value))
            waiting.append(value.__getstate__())  # what is in __dict__ and __slots__


def base(x: Array) -> Array:
    """The array that owns x's memory: x itself unless it is a view."""
    while isinstance(x.base, type(x)):
        x = x.base
    return x


def overlaps(x: Array, others: list[Array | None]) -> bool:
    """Whether x may share memory with one of the others.

    Views of one array do if their address ranges overlap.  Owners are compared first: that is
    cheaper, and most arrays have different ones.
    """
    owner, kind = base(x), type(x)
    for other in others:
        same = type(other) is kind and base(other) is owner
        if same and array_module(x).may_share_memory(x, other):
            return True
    return False


def bytes_behind(values: Iterable[Any]) -> int:
    """The bytes of the tensors in `values` and of what their graphs keep alive, without parameters.

    Other values do not count.
    """
    kept: dict[int, int] = {}  # by id of the owning array
    parameters: set[int] = set()
    seen: set[int] = set()  # ids of nodes
    waiting = [value for value in values if isinstance(value, Tensor)]
    while waiting:
        tensor = waiting.pop()
        owner = base(tensor._data)
        if tensor.is_leaf and tensor.requires_grad:
            parameters.add(id(owner))
        kept[id(owner)] = int(owner.nbytes)
        node = tensor._node
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        kept |= {id(base(array)): int(base(array).nbytes) for array in saved_arrays(node)}
        waiting += [value for value in node.inputs if isinstance(value, Tensor)]
    return sum(size for key, size in kept.items() if key not in parameters)
