"""Operations on tensors.  One op, one file."""

from gpucnn.ops.activation import gelu, sigmoid, tanh
from gpucnn.ops.adaptive_pool2d import adaptive_avg_pool2d
from gpucnn.ops.batch_norm import batch_norm
from gpucnn.ops.conv2d import conv2d, get_conv_algorithm, set_conv_algorithm
from gpucnn.ops.dropout import dropout
from gpucnn.ops.elementwise import (
    add,
    divide,
    exp,
    log,
    multiply,
    negative,
    power,
    sqrt,
    subtract,
    where,
)
from gpucnn.ops.linear import linear
from gpucnn.ops.local_response_norm import local_response_norm
from gpucnn.ops.loss import mse_loss
from gpucnn.ops.matmul import matmul
from gpucnn.ops.pool2d import MaxPool, avg_pool2d, global_avg_pool2d, max_pool2d
from gpucnn.ops.reduction import max, mean, min, sum, var
from gpucnn.ops.relu import leaky_relu, relu
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
from gpucnn.ops.softmax import cross_entropy, log_softmax, softmax, softmax_cross_entropy

__all__ = [
    "MaxPool",
    "adaptive_avg_pool2d",
    "add",
    "astype",
    "avg_pool2d",
    "batch_norm",
    "concatenate",
    "conv2d",
    "cross_entropy",
    "divide",
    "dropout",
    "exp",
    "flatten",
    "from_nchw",
    "gelu",
    "get_conv_algorithm",
    "getitem",
    "global_avg_pool2d",
    "leaky_relu",
    "linear",
    "local_response_norm",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "max_pool2d",
    "mean",
    "min",
    "mse_loss",
    "multiply",
    "negative",
    "pad",
    "power",
    "relu",
    "reshape",
    "set_conv_algorithm",
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
