"""One matrix product with its epilogue; which kernel computes it.

    y = multiply("NT", x, weight, np.float32, Epilogue(bias=bias, relu=True))

The form says how the operands of y (M, N) = A (M, K) * B (K, N) are stored:

form   a        b        of a dense layer, weight (OUT, IN)
NT     (M, K)   (N, K)   y = x @ weight.T + bias
NN     (M, K)   (K, N)   dx = dy @ weight
TN     (K, M)   (K, N)   dweight = dy.T @ x, dbias = dy.sum(0)
"""

from typing import Any

import numpy as np

from gpucnn.device import Array, array_module
from gpucnn.ops.gemm import plain, tensor
from gpucnn.ops.gemm.operands import Epilogue, Operands

NONE = Epilogue()


def multiply(
    form: str, a: Array, b: Array, dtype: Any, epilogue: Epilogue = NONE, tf32: bool = False
) -> tuple[Array, Array | None]:
    """y (M, N) of `dtype`, and with epilogue.column_sum the sums of a's columns, else None.

    a and b are matrices of float32, float16 or bfloat16; if their dtypes differ, the float32 one is
    rounded to the other's.  Sums are float32.  tf32: float32 operands may be multiplied in TF32.
    Call it with the arrays' device current.
    """
    xp = array_module(a)
    if a.dtype != b.dtype:
        half = a.dtype if a.dtype.itemsize == 2 else b.dtype
        a, b = a.astype(half, copy=False), b.astype(half, copy=False)
    a, b = xp.ascontiguousarray(a), xp.ascontiguousarray(b)
    m, k = a.shape[::-1] if form == "TN" else a.shape
    n = b.shape[0] if form == "NT" else b.shape[1]
    y = xp.empty((m, n), dtype)
    sums = xp.empty(m, np.float32) if epilogue.column_sum else None
    if y.size == 0:
        if sums is not None:
            sums[...] = a.sum(0)
        return y, sums
    operands = Operands(form, m, n, k, a, b, y, sums, epilogue)
    element = tensor.element(operands, tf32)
    if element is None:
        plain.run(operands)
    else:
        tensor.run(operands, element)
    return y, sums
