"""gpucnn: a CNN framework that can be read from the Python call to the last CUDA instruction."""

from gpucnn.tensor import Tensor, from_dlpack, tensor  # isort: skip  it loads autograd and ops
from gpucnn import data, inspect, models, nn, ops, optim, train
from gpucnn.autograd import enable_grad, no_grad
from gpucnn.device import Device, device
from gpucnn.errors import GpucnnError, OutOfMemory
from gpucnn.onnx_export import export_onnx
from gpucnn.ops import get_conv_algorithm, set_conv_algorithm
from gpucnn.random import default_generator, manual_seed
from gpucnn.saved import load, save
from gpucnn.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

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
