"""Operands of products under autocast: half-precision copies of weights, rounded operands."""

from typing import Any

import numpy as np

from gpucnn.device import Array
from gpucnn.ops._exact import narrowed


def half_copy(weight: Array, dtype: np.dtype[Any], cache: dict[Any, Any] | None) -> Array:
    """weight in `dtype`, half precision: itself, or a copy.

    cache is the weight's, if it is a leaf: Tensor.cache().  The copy is kept there under
    ("half", dtype), where an optimizer that has updated the weight puts it too.
    """
    if weight.dtype == dtype:
        return weight
    copy = None if cache is None else cache.get(("half", dtype))
    if copy is None:
        copy = weight.astype(dtype)
        if cache is not None:
            cache["half", dtype] = copy
    return copy


def rounded(x: Array, dtype: np.dtype[Any]) -> Array:
    """x rounded to `dtype`, half precision, as float32 values: what the CPU multiplies.

    A product on the CPU is rounded like one on tensor cores: operands by this, then the float32
    result, and the gradient of each operand, once to its own dtype by `narrowed`.
    """
    return narrowed(x, dtype).astype(np.float32)
