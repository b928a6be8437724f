"""The AlexNets of the benchmarks, as lists of layers and as modules of gpucnn or PyTorch."""

from typing import Any


def keras_layers() -> list[tuple[Any, ...]]:
    """gpucnn.models.alexnet_keras as (kind, sizes...), for 227 x 227 images with one channel."""
    return [
        ("conv", 1, 96, 11, 4, 4),
        ("norm", 96),
        ("pool", 2, 2),
        ("conv", 96, 256, 5, 1, 2),
        ("norm", 256),
        ("pool", 3, 2),
        ("conv", 256, 384, 3, 1, 1),
        ("norm", 384),
        ("conv", 384, 384, 1, 1, 0),
        ("norm", 384),
        ("conv", 384, 256, 3, 1, 1),
        ("norm", 256),
        ("pool", 2, 2, True),  # ceil_mode: 13 x 13 becomes 7 x 7
        ("flatten",),
        ("linear", 7 * 7 * 256, 4096),
        ("dropout", 0.4),
        ("linear", 4096, 4096),
        ("dropout", 0.4),
        ("linear", 4096, 1000),
        ("dropout", 0.4),
        ("last", 1000, 10),
    ]


def cifar_layers(side: int = 32) -> list[tuple[Any, ...]]:
    """gpucnn.models.alexnet_cifar10 as (kind, sizes...); 8 must divide the image side."""
    return [
        ("conv", 3, 64, 3, 1, 1),
        ("pool", 2, 2),
        ("conv", 64, 192, 3, 1, 1),
        ("pool", 2, 2),
        ("conv", 192, 384, 3, 1, 1),
        ("conv", 384, 256, 3, 1, 1),
        ("conv", 256, 256, 3, 1, 1),
        ("pool", 2, 2),
        ("flatten",),
        ("dropout", 0.5),
        ("linear", (side // 8) ** 2 * 256, 1024),
        ("dropout", 0.5),
        ("linear", 1024, 1024),
        ("last", 1024, 10),
    ]


def modules(layers: list[tuple[Any, ...]], nn: Any) -> list[Any]:
    """The layers as modules of nn, which is gpucnn.nn or torch.nn."""
    made: list[Any] = []
    for kind, *sizes in layers:
        if kind == "conv":
            c, oc, k, stride, padding = sizes
            made += [nn.Conv2d(c, oc, k, stride=stride, padding=padding), nn.ReLU()]
        elif kind == "norm":
            made.append(nn.BatchNorm2d(*sizes))
        elif kind == "pool":
            kernel_size, stride, *ceil_mode = sizes
            made.append(nn.MaxPool2d(kernel_size, stride, ceil_mode=bool(ceil_mode)))
        elif kind == "flatten":
            made.append(nn.Flatten())
        elif kind == "dropout":
            made.append(nn.Dropout(*sizes))
        else:
            made += [nn.Linear(*sizes), *([nn.ReLU()] if kind == "linear" else [])]
    return made
