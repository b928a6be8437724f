"""Layers, containers, losses and weight initialisers."""

from gpucnn.nn import init
from gpucnn.nn.activations import GELU, LeakyReLU, LogSoftmax, ReLU, Sigmoid, Softmax, Tanh
from gpucnn.nn.containers import ModuleList, Sequential
from gpucnn.nn.hooks import HookHandle, observe
from gpucnn.nn.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    Reshape,
    ZeroPad2d,
)
from gpucnn.nn.losses import CrossEntropyLoss, MSELoss
from gpucnn.nn.module import Module, Parameter
from gpucnn.nn.normalization import BatchNorm1d, BatchNorm2d, LocalResponseNorm
from gpucnn.nn.summary import LayerSummary, Summary, summary

__all__ = [
    "GELU",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "HookHandle",
    "LayerSummary",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "LogSoftmax",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "Parameter",
    "ReLU",
    "Reshape",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Summary",
    "Tanh",
    "ZeroPad2d",
    "init",
    "observe",
    "summary",
]
