"""The AlexNets of the CPU benchmarks as lists of layers, and as modules of either framework."""

from typing import Any


def keras_layers() -> list[tuple[Any, ...]]:
    """gpucnn.models.alexnet_keras, for images 227 x 227 of one channel: (kind, sizes...)."""
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
        ("pool", 2, 2, True),  # ceil: the 14th row and column are padding
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
    """gpucnn.models.alexnet_cifar10, for images of any side that 8 divides."""
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


def modules(layers: list[tuple[Any, ...]], nn: Any, batch_norm: Any, ceil: str) -> list[Any]:
    """The layers in nn, which is gpucnn.nn or torch.nn: the two differ in the name of batch
    normalisation and in that of the argument for pools which hang over the edge."""
    made: list[Any] = []
    for kind, *sizes in layers:
        if kind == "conv":
            c, oc, k, stride, padding = sizes
            made += [nn.Conv2d(c, oc, k, stride=stride, padding=padding), nn.ReLU()]
        elif kind == "norm":
            made.append(batch_norm(*sizes))
        elif kind == "pool":
            size, stride, *hangs = sizes
            made.append(nn.MaxPool2d(size, stride, **{ceil: bool(hangs)}))
        elif kind == "flatten":
            made.append(nn.Flatten())
        elif kind == "dropout":
            made.append(nn.Dropout(*sizes))
        else:
            made += [nn.Linear(*sizes), *([nn.ReLU()] if kind == "linear" else [])]
    return made
