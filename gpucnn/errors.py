"""Every error that gpucnn raises for a user's mistake.

Each says what was asked, what was expected, what came, and the way out.  Each is also one of
Python's own exceptions, so that `except ValueError` keeps its meaning; the command line turns
any GpucnnError into its text and exit status 2.
"""

from typing import Any


class GpucnnError(Exception):
    """The common ancestor: `except gpucnn.GpucnnError` catches every one of these."""


class ShapeError(GpucnnError, ValueError):
    """Shapes that do not fit together."""


class DtypeError(GpucnnError, TypeError):
    """A dtype that the operation does not take, or two that differ."""


class DeviceError(GpucnnError, RuntimeError):
    """A device that does not exist or cannot be used here."""


class DeviceMismatch(DeviceError):
    """Arrays of two devices in one operation."""


class OutOfMemory(GpucnnError, MemoryError):
    """A device without room, after everything that nobody uses was given back.

    requested, used, free   bytes: of the array that did not fit, in use then, left then
    where                   the op, and the layer whose op it is; "" if nobody knows
    images, batch_size      the batch that did not fit, and about how large one would; or None
    """

    def __init__(self, requested: int, used: int, free: int, device: str) -> None:
        super().__init__(requested, used, free, device)
        self.requested, self.used, self.free, self.device = requested, used, free, device
        self.where = ""
        self.images: int | None = None
        self.batch_size: int | None = None

    def __str__(self) -> str:
        text = (
            f"{self.where or 'an array'}: asked {self.device} for {_size(self.requested)}, and it "
            f"has {_size(self.free)} free beside {_size(self.used)} in use\n  "
        )
        if self.batch_size is None or self.images is None:
            return text + "free what is not needed, or use a smaller model or batch"
        if self.batch_size < 1:
            return text + "not even one image would fit: use a smaller model or smaller images"
        return text + (
            f"use a smaller batch: about {self.batch_size} images instead of {self.images}, by "
            "what each took so far"
        )


def _size(n: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= factor:
            return f"{n / factor:.1f} {unit}"
    return f"{n} bytes"


class KernelError(GpucnnError, RuntimeError):
    """A CUDA kernel that does not compile, or that the simulator caught breaking a rule."""


class GraphError(GpucnnError, RuntimeError):
    """A backward pass that cannot be done."""


class ArgumentError(GpucnnError, ValueError):
    """A value outside its range, or a name that is not known."""


class DataError(GpucnnError, ValueError):
    """A data file that is missing, damaged or not what its name says."""


class CheckpointError(GpucnnError, ValueError):
    """A checkpoint or state that does not fit the model, or cannot be read."""


class OutputError(GpucnnError, OSError):
    """A file that cannot be written: the disk is full, the folder read-only, a name is taken."""


class DivergenceError(GpucnnError, ArithmeticError):
    """Training whose loss is no longer a finite number."""


class MissingExtra(GpucnnError, ImportError):
    """An optional dependency that is not installed."""


def missing_extra(what: str, package: str, extra: str) -> MissingExtra:
    """The error for `what`, which needs `package` from the extra `extra`."""
    return MissingExtra(f'{what} needs {package}: pip install "gpucnn[{extra}]"')


def kind(value: Any) -> str:
    """What `value` is, for an error's text: "None", "a list of 2", "a float64 ndarray (8, 3)"."""
    if value is None:
        return "None"
    text = type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and str(dtype) not in (text, "None"):
        text = f"{dtype} {text} {shape}"
    elif isinstance(value, tuple | list):
        text += f" of {len(value)}"
    return f"{'an' if text[0].lower() in 'aeio' else 'a'} {text}"
