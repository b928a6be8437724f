"""Operations on tensors.  One op, one file."""

from gpucnn.ops.activation import sigmoid, silu, softplus, tanh
from gpucnn.ops.adaptive_pool2d import adaptive_avg_pool2d
from gpucnn.ops.axes import squeeze, stack, swapaxes, unsqueeze
from gpucnn.ops.batch_norm import batch_norm
from gpucnn.ops.clamp import abs, clamp
from gpucnn.ops.comparison import eq, ge, gt, le, lt, ne
from gpucnn.ops.conv2d import conv2d, get_conv_algorithm, set_conv_algorithm
from gpucnn.ops.conv_transpose2d import conv_transpose2d
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
from gpucnn.ops.gelu import gelu
from gpucnn.ops.group_norm import group_norm, layer_norm
from gpucnn.ops.interpolate import interpolate
from gpucnn.ops.linear import linear
from gpucnn.ops.local_response_norm import local_response_norm
from gpucnn.ops.loss import (
    binary_cross_entropy_with_logits,
    l1_loss,
    mse_loss,
    smooth_l1_loss,
)
from gpucnn.ops.matmul import matmul
from gpucnn.ops.nll_loss import nll_loss
from gpucnn.ops.pool2d import MaxPool, avg_pool2d, global_avg_pool2d, max_pool2d
from gpucnn.ops.reduction import max, mean, min, sum, var
from gpucnn.ops.relu import leaky_relu, relu
from gpucnn.ops.shape import (
    astype,
    clone,
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
    "abs",
    "adaptive_avg_pool2d",
    "add",
    "astype",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "clamp",
    "clone",
    "concatenate",
    "conv2d",
    "conv_transpose2d",
    "cross_entropy",
    "divide",
    "dropout",
    "eq",
    "exp",
    "flatten",
    "from_nchw",
    "ge",
    "gelu",
    "get_conv_algorithm",
    "getitem",
    "global_avg_pool2d",
    "group_norm",
    "gt",
    "interpolate",
    "l1_loss",
    "layer_norm",
    "le",
    "leaky_relu",
    "linear",
    "local_response_norm",
    "log",
    "log_softmax",
    "lt",
    "matmul",
    "max",
    "max_pool2d",
    "mean",
    "min",
    "mse_loss",
    "multiply",
    "ne",
    "negative",
    "nll_loss",
    "pad",
    "power",
    "relu",
    "reshape",
    "set_conv_algorithm",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "sqrt",
    "squeeze",
    "stack",
    "subtract",
    "sum",
    "swapaxes",
    "tanh",
    "to_device",
    "to_nchw",
    "transpose",
    "unsqueeze",
    "var",
    "where",
]
