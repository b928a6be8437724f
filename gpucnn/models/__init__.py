"""Networks.  Each function builds one; `build` builds one by name."""

from gpucnn.models.alexnet import (
    alexnet,
    alexnet_cifar10,
    alexnet_cifar10_bn,
    alexnet_keras,
    alexnet_torchvision,
    cuda_convnet_18pct,
)
from gpucnn.models.lenet import lenet, lenet5
from gpucnn.models.mlp import mlp
from gpucnn.models.registry import BY_NAME, build, input_shape
from gpucnn.models.resnet import resnet18_cifar
from gpucnn.models.speedrun import SpeedrunNet, speedrun_cifar10
from gpucnn.models.vgg import vgg16_cifar
from gpucnn.models.views import SixViews, TenViews

__all__ = [
    "BY_NAME",
    "SixViews",
    "SpeedrunNet",
    "TenViews",
    "alexnet",
    "alexnet_cifar10",
    "alexnet_cifar10_bn",
    "alexnet_keras",
    "alexnet_torchvision",
    "build",
    "cuda_convnet_18pct",
    "input_shape",
    "lenet",
    "lenet5",
    "mlp",
    "resnet18_cifar",
    "speedrun_cifar10",
    "vgg16_cifar",
]
