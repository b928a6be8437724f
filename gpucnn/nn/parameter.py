"""Parameter: a tensor that a module trains."""

from gpucnn.device import Array, default_device, device_of, to_device
from gpucnn.tensor import Tensor


class Parameter(Tensor):
    """A tensor that a module trains: a leaf, created with requires_grad=True.

    It stays on the device of `data`, unless `with gpucnn.device(...)` names another one.
    requires_grad=False freezes it: backward computes no gradient for it, optimizers skip it, and it
    remains in the state dict.
    """

    __slots__ = ()

    def __init__(self, data: Array) -> None:
        super().__init__(to_device(data, default_device() or device_of(data)), requires_grad=True)


def is_trained(tensor: Tensor) -> bool:
    """Whether a module's tensor is a parameter, possibly a frozen one, rather than a buffer."""
    return isinstance(tensor, Parameter) or (tensor.requires_grad and tensor.is_leaf)
