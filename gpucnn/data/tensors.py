"""TensorDataset: pairs (x, y) of any shape, in memory."""

from typing import Any

from gpucnn.data.dataset import numbers
from gpucnn.device import Array, to_host
from gpucnn.errors import ArgumentError, ShapeError


class TensorDataset:
    """The pairs (x[i], y[i]) of two tensors, arrays or lists with equally long first axes.

    Shapes and dtypes are any, and a DataLoader keeps both: x may be rows of a table, and y
    targets of a regression.  To train a classifier, x is what the model takes, usually float32,
    and y holds integer labels (N,).  What lies on a GPU is copied to the host.

    dataset[3] and dataset[10:20] are tuples (x, y) of NumPy arrays; `tensors` is the tuple of both.

    Raises ArgumentError unless there are two; ShapeError if their lengths differ or one has no
    axis; DtypeError for anything but numbers.
    """

    def __init__(self, *tensors: Any) -> None:
        if len(tensors) != 2:
            raise ArgumentError(
                f"TensorDataset: expected two tensors, x and y, got {len(tensors)}\n"
                "  a batch is a pair: put further values into x or y"
            )
        x, y = (
            to_host(numbers(f"TensorDataset: {name}", value))
            for name, value in zip("xy", tensors, strict=True)
        )
        if not x.ndim or not y.ndim or len(x) != len(y):
            raise ShapeError(
                "TensorDataset: expected a first axis of one length, "
                f"got x {x.shape} and y {y.shape}"
            )
        self.tensors: tuple[Array, Array] = x, y

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        x, y = self.tensors
        return x[index], y[index]

    def __repr__(self) -> str:
        x, y = (f"{t.dtype} {t.shape}" for t in self.tensors)
        return f"TensorDataset({x}, {y})"
