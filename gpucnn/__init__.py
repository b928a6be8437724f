"""gpucnn: a CNN framework that can be read from the Python call to the last CUDA instruction."""

from gpucnn import autograd, data, inspect, models, nn, ops, optim, train, weights
from gpucnn._version import __version__
from gpucnn.autograd import Function, enable_grad, no_grad
from gpucnn.checkpoint import load, save
from gpucnn.cpu import get_num_threads, set_num_threads
from gpucnn.creation import (
    arange,
    empty,
    from_dlpack,
    full,
    ones,
    ones_like,
    rand,
    randn,
    tensor,
    zeros,
    zeros_like,
)
from gpucnn.device import Device, device
from gpucnn.errors import GpucnnError, OutOfMemory
from gpucnn.interop.onnx import export_onnx
from gpucnn.ops import concatenate as cat
from gpucnn.ops import get_conv_algorithm, set_conv_algorithm, stack, where
from gpucnn.precision import autocast, get_float32_precision, set_float32_precision
from gpucnn.random import default_generator, manual_seed
from gpucnn.tensor import Tensor, bind

bind(ops, autograd)

__all__ = [
    "Device",
    "Function",
    "GpucnnError",
    "OutOfMemory",
    "Tensor",
    "__version__",
    "arange",
    "autocast",
    "cat",
    "data",
    "default_generator",
    "device",
    "empty",
    "enable_grad",
    "export_onnx",
    "from_dlpack",
    "full",
    "get_conv_algorithm",
    "get_float32_precision",
    "get_num_threads",
    "inspect",
    "load",
    "manual_seed",
    "models",
    "nn",
    "no_grad",
    "ones",
    "ones_like",
    "ops",
    "optim",
    "rand",
    "randn",
    "save",
    "set_conv_algorithm",
    "set_float32_precision",
    "set_num_threads",
    "stack",
    "tensor",
    "train",
    "weights",
    "where",
    "zeros",
    "zeros_like",
]
