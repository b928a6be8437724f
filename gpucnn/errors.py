"""Every error that gpucnn raises for a user's mistake.

Each says what was asked, what was expected, what came, and the way out.  Each is also one of
Python's own exceptions, so that `except ValueError` keeps its meaning; the command line turns
any GpucnnError into its text and exit status 2.
"""


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


class DivergenceError(GpucnnError, ArithmeticError):
    """Training whose loss is no longer a finite number."""


class MissingExtra(GpucnnError, ImportError):
    """An optional dependency that is not installed."""


def missing_extra(what: str, package: str, extra: str) -> MissingExtra:
    """The error for `what`, which needs `package` from the extra `extra`."""
    return MissingExtra(f'{what} needs {package}: pip install "gpucnn[{extra}]"')
