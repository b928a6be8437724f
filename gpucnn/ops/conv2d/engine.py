"""The interfaces of conv2d's engines on NumPy, and of the state that a forward pass saves."""

from typing import Any, Protocol, TypeAlias

from gpucnn.device import Array
from gpucnn.ops.conv2d.fusion import Epilogue
from gpucnn.ops.geometry import Geometry

Gradients: TypeAlias = tuple[Array | None, Array | None, Array | None]  # dx, dweight, dbias
Cache: TypeAlias = dict[Any, Any]  # Tensor.cache() of the weight


class Saved(Protocol):
    """What a forward pass saves for the backward pass."""

    def backward(self, dy: Array, needs: tuple[bool, ...], last_use: bool) -> Gradients:
        """dx, dweight and dbias for dy (N, OH, OW, OC); None where `needs` is False.

        With last_use the saved arrays may be overwritten.
        """
        ...


class Engine(Protocol):
    """One way to compute a convolution on NumPy."""

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        g: Geometry,
        epilogue: Epilogue,
        keep: bool,
        cache: Cache | None,
    ) -> Saved | None:
        """Convolve x (N, H, W, C), and hand the result to the epilogue part by part.

        x and weight are contiguous.  The result is a Saved with `keep`, else None.  Without
        `keep` the engine may store what it computes from the weight in `cache`.
        """
        ...
