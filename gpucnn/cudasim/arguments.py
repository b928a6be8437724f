"""A launch's arguments as the kernel gets them, and what the checked modes do with its arrays."""

import ctypes
from typing import Any

import numpy as np

from gpucnn.cudasim.arrays import ndarray

_FENCE = 4096  # bytes on both sides of an array that belong to nothing
_ALIGNMENT = 512


class _Range(ctypes.Structure):  # Range in native/worker.h
    _fields_ = [
        ("begin", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
        ("item", ctypes.c_int),
        ("writable", ctypes.c_int),
        ("name", ctypes.c_char_p),
    ]


class Arguments:
    """The bytes of each argument of one launch.

    parameters are the kernel's: name, and whether it is a pointer to const.  Raises TypeError for
    what CuPy would take and pass wrongly: an array of the host, one that is not contiguous, a
    Python number.
    """

    def __init__(
        self, kernel: str, parameters: list[tuple[str, bool]], args: tuple[Any, ...]
    ) -> None:
        if len(args) != len(parameters):
            raise TypeError(f"{kernel}: takes {len(parameters)} arguments, got {len(args)}")
        self._parameters = parameters
        self._args = args
        self._values = [_value(kernel, arg) for arg in args]
        self._pointers = (ctypes.c_void_p * len(args))(*(v.ctypes.data for v in self._values))
        self._copies: list[tuple[int, int, int]] = []  # original, copy, bytes
        self._memory: list[Any] = []
        self.ranges = (_Range * 0)()

    @property
    def address(self) -> int:
        return ctypes.addressof(self._pointers)

    def fence(self) -> None:
        """Let the kernel work on copies of its arrays, each alone between two fences.

        Arrays that share memory, such as views of one buffer, stay together only if they overlap:
        the step from one view into its neighbour is a mistake too.
        """
        spans = []  # begin, end, argument's number
        for number, arg in enumerate(self._args):
            if isinstance(arg, ndarray):
                spans.append((arg.data.ptr, arg.data.ptr + arg.nbytes, number))
        groups: list[list[tuple[int, int, int]]] = []
        reach = -1
        for span in sorted(spans):
            if span[0] >= reach:
                groups.append([])
            groups[-1].append(span)
            reach = max(reach, span[1])
        ranges = []
        for group in groups:
            begin, end = group[0][0], max(span[1] for span in group)
            size = end - begin
            memory = np.empty(size + 2 * _FENCE + _ALIGNMENT, np.uint8)
            start = memory.ctypes.data + _FENCE
            start += (begin - start) % _ALIGNMENT  # as aligned as the original, and no more
            ctypes.memmove(start, begin, size)
            self._memory.append(memory)
            writable = not all(self._parameters[number][1] for _, _, number in group)
            if writable:
                self._copies.append((begin, start, size))
            for first, _, number in group:
                self._values[number][...] = start + first - begin
            name = " = ".join(dict.fromkeys(self._parameters[number][0] for _, _, number in group))
            item = self._args[group[0][2]].itemsize
            ranges.append(_Range(start, start + size, item, writable, name.encode()))
        self.ranges = (_Range * len(ranges))(*ranges)

    def copy_back(self) -> None:
        """Bring what the kernel wrote into the arrays."""
        for original, copy, size in self._copies:
            ctypes.memmove(original, copy, size)


def _value(kernel: str, arg: Any) -> np.ndarray[Any, Any]:
    """The bytes that the kernel gets for `arg`.  CuPy takes more, and often the wrong one."""
    if isinstance(arg, ndarray):
        if not arg.flags.c_contiguous:
            raise TypeError(
                f"{kernel}: an array {arg.shape} with strides {arg.strides} is not contiguous; the "
                "kernel would read its neighbours' memory"
            )
        return np.array(arg.data.ptr, np.uint64)
    if isinstance(arg, np.generic):
        return np.array(arg)
    if isinstance(arg, np.ndarray) and arg.dtype.kind == "V" and arg.ndim == 0:
        return arg  # a struct by value: a record, or its raw bytes
    if isinstance(arg, np.ndarray):
        raise TypeError(
            f"{kernel}: an array of the host where the kernel expects device memory; "
            "CuPy would pass its bytes by value"
        )
    raise TypeError(
        f"{kernel}: {arg!r} is a Python {type(arg).__name__}; CuPy would pass 64 bits whatever the "
        "kernel takes: give it a NumPy type (numpy.float32, numpy.int32)"
    )
