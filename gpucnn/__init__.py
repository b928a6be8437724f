"""gpucnn: a CNN framework that can be read from the Python call to the last CUDA instruction."""

from gpucnn import autograd, data, inspect, models, nn, ops, optim, train
from gpucnn._version import __version__
from gpucnn.autograd import enable_grad, no_grad
from gpucnn.checkpoint import load, save
from gpucnn.cpu import get_num_threads, set_num_threads
from gpucnn.creation import from_dlpack, tensor
from gpucnn.device import Device, device
from gpucnn.errors import GpucnnError, OutOfMemory
from gpucnn.interop.onnx import export_onnx
from gpucnn.ops import get_conv_algorithm, set_conv_algorithm
from gpucnn.random import default_generator, manual_seed
from gpucnn.tensor import Tensor, bind

bind(ops, autograd)

__all__ = [
    "Device",
    "GpucnnError",
    "OutOfMemory",
    "Tensor",
    "__version__",
    "data",
    "default_generator",
    "device",
    "enable_grad",
    "export_onnx",
    "from_dlpack",
    "get_conv_algorithm",
    "get_num_threads",
    "inspect",
    "load",
    "manual_seed",
    "models",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "save",
    "set_conv_algorithm",
    "set_num_threads",
    "tensor",
    "train",
]
