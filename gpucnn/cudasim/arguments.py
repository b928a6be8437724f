"""The arguments of a launch as the kernel receives them, with guards for the checked modes."""

import ctypes
from typing import Any

import numpy as np

from gpucnn.cudasim.arrays import ndarray

_FENCE = 4096  # unused bytes on both sides of an array
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
    """The bytes of each argument of a launch.

    parameters holds each kernel parameter's name, and whether it is a pointer to const.  Raises
    TypeError for arguments that CuPy would accept but pass wrongly: NumPy arrays, non-contiguous
    arrays and Python numbers.
    """

    def __init__(
        self, kernel: str, parameters: list[tuple[str, bool]], args: tuple[Any, ...]
    ) -> None:
        if len(args) != len(parameters):
            raise TypeError(f"{kernel}: expected {len(parameters)} arguments, got {len(args)}")
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
        """Replace the arrays by copies, each between two fences.

        Views of one buffer share a copy only if they overlap, so that an access from one view into
        the next is an error too.
        """
        spans = []  # begin, end, index of the argument
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
            start += (begin - start) % _ALIGNMENT  # aligned like the original, but no better
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
        """Copy the results back into the arrays."""
        for original, copy, size in self._copies:
            ctypes.memmove(original, copy, size)


def _value(kernel: str, arg: Any) -> np.ndarray[Any, Any]:
    """The bytes passed for `arg`; TypeError where CuPy could pass wrong ones."""
    if isinstance(arg, ndarray):
        if not arg.flags.c_contiguous:
            raise TypeError(
                f"{kernel}: an array {arg.shape} with strides {arg.strides} is not contiguous; "
                "the kernel would access memory between its elements"
            )
        return np.array(arg.data.ptr, np.uint64)
    if isinstance(arg, np.generic):
        return np.array(arg)
    if isinstance(arg, np.ndarray) and arg.dtype.kind == "V" and arg.ndim == 0:
        return arg  # a struct by value: a record or raw bytes
    if isinstance(arg, np.ndarray):
        raise TypeError(
            f"{kernel}: a NumPy array where the kernel expects device memory; "
            "CuPy would pass its bytes by value"
        )
    raise TypeError(
        f"{kernel}: {arg!r} is a Python {type(arg).__name__}; CuPy would pass 64 bits "
        "whatever the kernel expects: use a NumPy scalar (numpy.float32, numpy.int32)"
    )
