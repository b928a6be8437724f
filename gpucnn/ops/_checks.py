"""Checks that conv2d and linear share."""

from gpucnn.errors import DtypeError, ShapeError
from gpucnn.tensor import Tensor


def check_bias_and_dtypes(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ShapeError unless bias is (OUT,) for weight (OUT, ...), DtypeError unless all three
    have one floating-point dtype; errors name `op`."""
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"{op}: expected bias of shape {weight.shape[:1]}, got {bias.shape}")
    if (
        x.dtype != weight.dtype
        or (bias is not None and bias.dtype != x.dtype)
        or x.dtype.kind != "f"
    ):
        raise DtypeError(
            f"{op}: x is {x.dtype}, weight is {weight.dtype}, "
            f"bias is {None if bias is None else bias.dtype}\n"
            "  expected one floating-point dtype for all; convert with .astype"
        )
