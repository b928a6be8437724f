"""Where a module's arrays are, and of which dtype."""

from collections.abc import Callable, Iterator
from typing import Any, Self

from gpucnn.creation import number_dtype
from gpucnn.device import Array, Device, to_device, working_on
from gpucnn.tensor import Tensor


class Placement:
    """A base of Module, which has the method that it declares."""

    _named_tensors: Callable[[], Iterator[tuple[str, Tensor]]]

    def to(self, device: str | Device) -> Self:
        """Move parameters and buffers to `device`, in place, and drop gradients; return self.

        Build the optimizer afterwards: it raises GraphError for arrays that were replaced.
        """
        target = Device.parse(device)
        return self._replace(lambda array: to_device(array, target))

    def cpu(self) -> Self:
        """to("cpu")."""
        return self.to("cpu")

    def cuda(self, index: int = 0) -> Self:
        """to("cuda:0"), or the CUDA device of that number."""
        return self.to(f"cuda:{index}")

    def astype(self, dtype: Any) -> Self:
        """Convert parameters and buffers to `dtype`, in place, and drop gradients; return self.

        Build the optimizer afterwards, as for `to`.  Raises DtypeError for a dtype that is not of
        numbers.
        """
        number = number_dtype("astype", dtype)
        return self._replace(lambda array: array.astype(number))

    def half(self) -> Self:
        """astype("float16").  For training, `gpucnn.autocast` keeps the parameters in float32."""
        return self.astype("float16")

    def bfloat16(self) -> Self:
        """astype("bfloat16")."""
        return self.astype("bfloat16")

    def float(self) -> Self:
        """astype("float32")."""
        return self.astype("float32")

    def double(self) -> Self:
        """astype("float64")."""
        return self.astype("float64")

    def _replace(self, change: Callable[[Array], Array]) -> Self:
        for _, value in self._named_tensors():
            with working_on(value.device):
                value.data = change(value.data)
            value.grad = None
        return self
