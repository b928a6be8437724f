"""Half-precision copies of an optimizer's parameters, which its kernels write.

    forward      ops._half.half_copy: weight.cache()["half", dtype], or a cast
    step         finds which parameters were used in half precision.  Its launch writes all
                 parameters to the flat buffer of that dtype; those that were used get their part
                 of it in their caches
    forward      finds them there: nothing is cast

A copy is up to date as long as the cache has it: whatever changes a parameter drops its cache.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpucnn.device import Array, array_module
from gpucnn.tensor import Tensor

_TYPES = {"float16": "half", "bfloat16": "bfloat16"}  # in kernels/optimizer.cu


class HalfCopy(NamedTuple):
    """A parameter's place in a buffer of copies."""

    parameter: Tensor
    key: tuple[str, Any]  # in the parameter's cache
    array: Array

    def is_offered(self) -> bool:
        """Whether the parameter's cache has the copy, which is then up to date."""
        return (self.parameter._cache or {}).get(self.key) is self.array

    def offer(self) -> None:
        """Let forward passes use the copy, which must be up to date."""
        self.parameter.cache()[self.key] = self.array

    def refresh(self) -> None:
        """Bring the copy up to date, and offer it."""
        if not self.is_offered():
            self.array[...] = self.parameter._data
            self.offer()


class HalfCopies:
    """The copies of parameters that start at `starts` in the flat buffer `flat`.

    target   the buffer that this step's launches write, or None
    """

    def __init__(self, parameters: Sequence[Tensor], starts: Sequence[int], flat: Array) -> None:
        self._parameters, self._starts, self._flat = parameters, starts, flat
        # By dtype: the buffer, and its parts by parameter; kept, because captured steps use them
        self._buffers: dict[Any, tuple[Array, list[HalfCopy]]] = {}
        self._users: list[HalfCopy] = []
        self.target: Array | None = None

    def prepare(self, moved: Iterable[int]) -> None:
        """Choose `target` by what forward has used: call it before the caches are dropped.

        moved are the numbers of the parameters that the step updates.
        """
        used: dict[Any, list[int]] = {}
        for i in moved:
            for key in self._parameters[i]._cache or ():
                if isinstance(key, tuple) and key[0] == "half":
                    used.setdefault(key[1], []).append(i)
        if not used:
            self.target, self._users = None, []
            return
        half = max(used, key=lambda dtype: len(used[dtype]))
        if half not in self._buffers:
            self._buffers[half] = self._new_buffer(half)
        self.target, copies = self._buffers[half]
        self._users = [copies[i] for i in used[half]]

    def _new_buffer(self, half: Any) -> tuple[Array, list[HalfCopy]]:
        buffer = array_module(self._flat).empty(self._flat.shape, half)
        copies = []
        for parameter, start in zip(self._parameters, self._starts, strict=True):
            part = buffer[start : start + parameter.size].reshape(parameter.shape)
            copies.append(HalfCopy(parameter, ("half", half), part))
        return buffer, copies

    def offer(self) -> None:
        """After the launches: let forward find the copies of the parameters that it used."""
        for copy in self._users:
            copy.offer()

    def offered(self) -> list[HalfCopy]:
        """The copies that the next forward pass will find."""
        return [
            copy for _, copies in self._buffers.values() for copy in copies if copy.is_offered()
        ]

    def defines(self) -> dict[str, str]:
        """The macros of a launch that writes `target`."""
        return {} if self.target is None else {"H": _TYPES[np.dtype(self.target.dtype).name]}
