"""Checks that conv2d, conv_transpose2d, linear and matmul share."""

from typing import Any

import numpy as np

from gpucnn.errors import DtypeError, ShapeError
from gpucnn.precision import autocast_dtype, is_floating
from gpucnn.tensor import Tensor


def check_bias_and_dtypes(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int | None = None
) -> np.dtype[Any] | None:
    """The dtype that autocast gives a product of x and weight; None: their own, without autocast.

    Raises ShapeError unless bias is (OUT,) for weight (OUT, ...), or (outputs,); DtypeError unless
    all three have one floating-point dtype.  Under autocast each may be float32 or of autocast's
    dtype.  Errors name `op`.
    """
    expected = weight.shape[:1] if outputs is None else (outputs,)
    if bias is not None and bias.shape != expected:
        raise ShapeError(f"{op}: expected bias of shape {expected}, got {bias.shape}")
    half = product_dtype(x, weight, *(() if bias is None else (bias,)))
    if half is not None:
        return half
    if (
        x.dtype != weight.dtype
        or (bias is not None and bias.dtype != x.dtype)
        or not is_floating(x.dtype)
    ):
        raise DtypeError(
            f"{op}: x is {x.dtype}, weight is {weight.dtype}, "
            f"bias is {None if bias is None else bias.dtype}\n"
            "  expected one floating-point dtype for all; convert with .astype"
        )
    return None


def product_dtype(*operands: Tensor) -> np.dtype[Any] | None:
    """autocast's dtype if it applies to these operands of a product, else None.

    It applies where each is float32 or has that dtype.  float64 stays what it is, as in PyTorch.
    """
    half = autocast_dtype()
    if half is None or any(x.dtype != np.float32 and x.dtype != half for x in operands):
        return None
    return half
