"""Data sets of labelled images, DataLoader, and transforms for augmentation.

Data sets and transforms work on NumPy arrays; a DataLoader with a device returns Tensors.
"""

from gpucnn.data.augment import (
    AlternatingFlip,
    Compose,
    Normalize,
    PerImageTransform,
    RandomCrop,
    RandomHorizontalFlip,
    Transform,
    channel_statistics,
)
from gpucnn.data.cifar import CIFAR10, CIFAR100, find_cifar10
from gpucnn.data.color import ColorNoise, color_components
from gpucnn.data.dataset import DataNotFound, Dataset, default_root
from gpucnn.data.folder import ImageFolder
from gpucnn.data.items import ItemDataset
from gpucnn.data.loader import DataLoader
from gpucnn.data.mnist import MNIST, FashionMNIST
from gpucnn.data.synthetic import Synthetic
from gpucnn.data.tensors import TensorDataset

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "AlternatingFlip",
    "ColorNoise",
    "Compose",
    "DataLoader",
    "DataNotFound",
    "Dataset",
    "FashionMNIST",
    "ImageFolder",
    "ItemDataset",
    "Normalize",
    "PerImageTransform",
    "RandomCrop",
    "RandomHorizontalFlip",
    "Synthetic",
    "TensorDataset",
    "Transform",
    "channel_statistics",
    "color_components",
    "default_root",
    "find_cifar10",
]
