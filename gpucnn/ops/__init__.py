"""Operations on tensors.  One op, one file."""

from gpucnn.ops.elementwise import (
    add,
    divide,
    exp,
    gelu,
    log,
    multiply,
    negative,
    power,
    sigmoid,
    sqrt,
    subtract,
    tanh,
    where,
)
from gpucnn.ops.loss import mean_squared_error
from gpucnn.ops.matmul import matmul
from gpucnn.ops.reduction import max, mean, min, sum, var
from gpucnn.ops.shape import (
    astype,
    concatenate,
    flatten,
    from_nchw,
    getitem,
    pad,
    reshape,
    to_device,
    to_nchw,
    transpose,
)
from gpucnn.ops.softmax import log_softmax, softmax, softmax_cross_entropy

__all__ = [
    "add",
    "astype",
    "concatenate",
    "divide",
    "exp",
    "flatten",
    "from_nchw",
    "gelu",
    "getitem",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "mean",
    "mean_squared_error",
    "min",
    "multiply",
    "negative",
    "pad",
    "power",
    "reshape",
    "sigmoid",
    "softmax",
    "softmax_cross_entropy",
    "sqrt",
    "subtract",
    "sum",
    "tanh",
    "to_device",
    "to_nchw",
    "transpose",
    "var",
    "where",
]
