"""The errors that gpucnn raises for a user's mistake.

A message says what was asked, what was expected, what was given and what to do.  Each class also
derives from a built-in exception, so `except ValueError` works as usual.  The command line prints
the message of a GpucnnError and exits with status 2.
"""

import sys
from typing import Any

# Of `pip install -e`, Python tries the entries of sys.path first.  There, a folder with the
# package's name, such as the checkout, passes for a package without __init__.py.
_package = sys.modules[__package__ or "gpucnn"]
if getattr(_package, "__file__", None) is None:
    raise ImportError(
        f"the folder {next(iter(_package.__path__))} hides the package gpucnn: it has the same "
        "name and lies beside your program\n"
        "  move the program to another folder, or rename that one, or install gpucnn without -e"
    )


class GpucnnError(Exception):
    """The base class of all errors below.

    A message may quote a file, so one of more than 10,000 characters loses its middle.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= 10_000:
            return text
        left_out = f"... {len(text) - 10_000:,} characters left out ..."
        return f"{text[:8000]}\n  {left_out}\n{text[-2000:]}"


class ShapeError(GpucnnError, ValueError):
    """Shapes that do not match."""


class DtypeError(GpucnnError, TypeError):
    """A dtype that the operation does not support, or dtypes that differ."""


class DeviceError(GpucnnError, RuntimeError):
    """A device that does not exist or cannot be used on this machine."""


class DeviceMismatch(DeviceError):
    """Arrays on different devices in one operation."""


class OutOfMemory(GpucnnError, MemoryError):
    """A device is out of memory, even after cached blocks were freed.

    requested, used, free   bytes: of the failed allocation, in use and free on the device; 0 where
                            the CPU's are unknown
    device                  its name
    where                   the op and its layer; "" if unknown
    images, batch_size      the batch that did not fit and an estimate of one that would, or None
    """

    def __init__(self, requested: int, used: int, free: int, device: str) -> None:
        super().__init__(requested, used, free, device)
        self.requested, self.used, self.free, self.device = requested, used, free, device
        self.where = ""
        self.images: int | None = None
        self.batch_size: int | None = None

    def __str__(self) -> str:
        amount = readable_size(self.requested) if self.requested else "memory"
        text = f"{self.where or 'an array'}: cannot allocate {amount} on {self.device}"
        if self.used or self.free:
            text += f": {readable_size(self.free)} free, {readable_size(self.used)} in use"
        text += "\n  "
        if self.batch_size is None or self.images is None:
            return text + "free arrays that are not needed, or use a smaller model or batch"
        if self.batch_size < 1:
            return text + "not even one image would fit: use a smaller model or smaller images"
        return text + (
            f"use a smaller batch: about {self.batch_size} images instead of {self.images}, "
            "estimated from the layers so far"
        )


def readable_size(n: int) -> str:
    """Format n bytes: "15.8 MiB"."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= factor:
            return f"{n / factor:.1f} {unit}"
    return f"{n} bytes"


class KernelError(GpucnnError, RuntimeError):
    """A CUDA kernel that does not compile, or an error that the simulator detected in one."""


class GraphError(GpucnnError, RuntimeError):
    """A backward pass or a change of a tensor that the graph does not allow."""


class ArgumentError(GpucnnError, ValueError):
    """A value out of range, or an unknown name."""


class DataError(GpucnnError, ValueError):
    """A data file that is missing, damaged or not in the format that its name implies."""


class CheckpointError(GpucnnError, ValueError):
    """A checkpoint or state that cannot be read or does not match the model."""


class OutputError(GpucnnError, OSError):
    """A file that cannot be written: a full disk, a read-only folder, a name that is taken."""


class DivergenceError(GpucnnError, ArithmeticError):
    """Training whose loss, gradients or parameters are infinite or NaN."""


class DistributedError(GpucnnError, RuntimeError):
    """Processes of a distributed run that differ, or one that no longer answers."""


class TrainingWarning(UserWarning):
    """A run that goes on although something looks wrong."""


class MissingExtra(GpucnnError, ImportError):
    """An optional dependency that is not installed."""


def missing_extra(what: str, package: str, extra: str) -> MissingExtra:
    """A MissingExtra for `what`, which needs `package` of gpucnn's extra `extra`."""
    return MissingExtra(f'{what} needs {package}: pip install "gpucnn[{extra}]"')


def kind(value: Any) -> str:
    """Describe `value` for a message: "None", "a list of 2", "a float64 ndarray (8, 3)"."""
    if value is None:
        return "None"
    text = type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and str(dtype) not in (text, "None"):
        text = f"{dtype} {text} {shape}"
    elif isinstance(value, tuple | list):
        text += f" of {len(value)}"
    return f"{'an' if text[0].lower() in 'aeio' else 'a'} {text}"
