"""Stream capture: record work instead of doing it, and repeat it as a graph.

    with stream:
        stream.begin_capture()
        y = x + 1                  # allocates y, full of poison, and records the addition
        graph = stream.end_capture()
    graph.launch()                 # adds, into the same memory

As on a GPU, a graph knows addresses, not arrays: it keeps no array alive.  A launch whose memory
has gone back to the device is an error here; one whose memory holds another array by now computes
with that, as on a GPU.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

Host = np.ndarray[Any, Any]
Work = Callable[[], object]

# What calls cuBLAS, and what reads its size from the device.
_CUBLAS = ("matmul", "__matmul__", "__rmatmul__")
_READ_BACK = ("bincount", "unique")
# Functions whose result may be a view: calling them on memory without values is harmless.
_VIEWS = frozenset(
    "reshape ravel transpose squeeze broadcast_to expand_dims swapaxes moveaxis as_strided "
    "sliding_window_view flip view".split()
)


class CUDARuntimeError(RuntimeError):
    """cupy.cuda.runtime.CUDARuntimeError, whose text begins with the error's name."""

    def __init__(self, status: str) -> None:
        super().__init__(status)


class Capture:
    """The work recorded so far."""

    def __init__(self) -> None:
        self.work: list[Work] = []
        self.blocks: set[int] = set()  # addresses of the device memory that the work uses
        self.failed = False

    def fail(self, name: str, text: str) -> CUDARuntimeError:
        """The error of an operation that also invalidates the capture."""
        self.failed = True
        return CUDARuntimeError(f"{name}: {text}")

    # --- arrays ---

    def bare(self, value: Any) -> Any:
        """`value` with each array replaced by one at the same address that keeps nothing alive."""
        if isinstance(value, np.ndarray):
            self._note(value)
            address = _Address()
            address.__array_interface__ = {
                "data": (value.ctypes.data, False),
                "shape": value.shape,
                "strides": value.strides,
                "typestr": f"|V{value.dtype.itemsize}",
                "version": 3,
            }
            return np.asarray(address).view(value.dtype)
        if isinstance(value, tuple | list):
            return type(value)(map(self.bare, value))
        if isinstance(value, dict):
            return {name: self.bare(item) for name, item in value.items()}
        return value

    def _note(self, array: Host) -> None:
        owner: Any = array
        while isinstance(owner, np.ndarray):
            owner = owner.base
        if hasattr(owner, "address"):
            self.blocks.add(owner.address)

    def call(
        self,
        function: Any,
        args: tuple[Any, ...],
        options: dict[str, Any],
        allocate: Callable[[Any, Any], Host],
        changes_first: bool = False,
    ) -> Any:
        """Record NumPy's function(*args, **options) on device memory; return its result.

        allocate(shape, dtype) returns device memory for a result.  With changes_first the function
        writes to its first argument.  Returns None if the result is in that or in options["out"].
        """
        name = function.__name__
        _refuse(name, args)
        if name in _VIEWS:
            result = function(*args, **options)
            if result.base is not None and _owner(result) is _owner(args[0]):
                return result
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = function(*_zeros(args), **_zeros(options))
        bare_args, bare_options = self.bare(args), self.bare(options)
        if changes_first or options.get("out") is not None:
            self.work.append(lambda: function(*bare_args, **bare_options))
            return None
        result = np.asarray(result)
        target = allocate(result.shape, result.dtype)
        self.copy(target, lambda: function(*bare_args, **bare_options))
        return target

    def copy(self, target: Host, source: Callable[[], Any]) -> None:
        """Record target[...] = source()."""
        bare_target = self.bare(target)

        def copy() -> None:
            bare_target[...] = source()

        self.work.append(copy)


class _Address:
    __array_interface__: dict[str, Any]


def _owner(array: Any) -> Any:
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def _zeros(value: Any) -> Any:
    """`value` with zeros in place of each array: a graph's memory has no values yet."""
    if isinstance(value, np.ndarray):
        return np.zeros(value.shape, value.dtype)
    if isinstance(value, tuple | list):
        return type(value)(map(_zeros, value))
    if isinstance(value, dict):
        return {name: _zeros(item) for name, item in value.items()}
    return value


# --- what CuPy refuses ---


def _refuse(name: str, args: tuple[Any, ...]) -> None:
    products = name in ("dot", "tensordot") and max(getattr(a, "ndim", 0) for a in args[:2]) > 1
    if name in _CUBLAS or products or (name == "einsum" and len(args) > 2):
        raise NotImplementedError(
            "calling cuBLAS API during stream capture is currently unsupported"
        )
    if name in _READ_BACK or (name == "where" and len(args) == 1):
        raise refused_transfer("D2H")


def refused_transfer(direction: str) -> RuntimeError:
    """The error for a copy, "D2H" or "H2D", on a stream that captures."""
    return RuntimeError(f"the current stream is capturing, so {direction} transfers are disallowed")


def check_index(index: Any) -> None:
    """Raise RuntimeError for an index whose use needs a copy to or from the host."""
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, list):
            raise refused_transfer("H2D")
        if isinstance(part, np.ndarray) and part.dtype == np.bool_:
            raise refused_transfer("D2H")


def is_basic(index: Any) -> bool:
    """Whether the index selects a view."""
    parts = index if isinstance(index, tuple) else (index,)
    return not any(isinstance(part, np.ndarray | list) for part in parts)


class Graph:
    """Work that `end_capture` returned, in the order of the calls."""

    def __init__(self, capture: Capture, mapped: Callable[[int], bool]) -> None:
        """mapped(address) says whether a block of device memory still belongs to the process."""
        self._capture = capture
        self._mapped = mapped

    def launch(self, stream: Any = None) -> None:
        """Do the work on `stream`; None means the current stream."""
        if not all(map(self._mapped, self._capture.blocks)):
            raise CUDARuntimeError(
                "cudaErrorIllegalAddress: the graph uses memory that was returned to the device\n"
                "  keep its MemoryPool, and every array that it uses"
            )
        for work in self._capture.work:
            work()

    def upload(self, stream: Any = None) -> None:
        """Prepare the first launch."""
