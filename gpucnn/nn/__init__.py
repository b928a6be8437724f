"""Layers, containers, losses and weight initialisers."""

from gpucnn.hooks import HookHandle
from gpucnn.nn import init
from gpucnn.nn.activations import (
    GELU,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from gpucnn.nn.containers import ModuleDict, ModuleList, Sequential
from gpucnn.nn.hooks import observe
from gpucnn.nn.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Identity,
    Linear,
    MaxPool2d,
    Reshape,
    ZeroPad2d,
)
from gpucnn.nn.losses import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    L1Loss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)
from gpucnn.nn.module import Module
from gpucnn.nn.normalization import (
    BatchNorm1d,
    BatchNorm2d,
    GroupNorm,
    LayerNorm,
    LocalResponseNorm,
)
from gpucnn.nn.parameter import Parameter
from gpucnn.nn.summary import LayerSummary, Summary, summary
from gpucnn.nn.upsampling import ConvTranspose2d, Upsample

__all__ = [
    "GELU",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "GroupNorm",
    "HookHandle",
    "Identity",
    "L1Loss",
    "LayerNorm",
    "LayerSummary",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "LogSoftmax",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "ModuleDict",
    "ModuleList",
    "NLLLoss",
    "Parameter",
    "ReLU",
    "Reshape",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softplus",
    "Summary",
    "Tanh",
    "Upsample",
    "ZeroPad2d",
    "init",
    "observe",
    "summary",
]
