"""AlexNet, sized for CIFAR-10.

| function               | input     | parameters | what it is                                   |
|------------------------|-----------|-----------:|----------------------------------------------|
| `alexnet_cifar10`      | 32x32x3   |  7,506,762 | five 3x3 convolutions, three pools, dropout  |
| `alexnet_cifar10_bn`   | 32x32x3   |  7,507,914 | the same with batch normalisation            |
"""

import numpy as np

from gpucnn import nn


def alexnet_cifar10(
    classes: int = 10, channels: int = 3, generator: np.random.Generator | None = None
) -> nn.Sequential:
    """AlexNet for images (N, 32, 32, channels): logits (N, classes).

    Krizhevsky's five convolutions, three pools and three dense layers, at the scale of a 32x32
    image: 3x3 windows, pools 2x2, ReLU after each, dropout 0.5 before the first two dense layers.
    He initialisation drawn from `generator` (None: the default one); biases start at zero.
    Source: Krizhevsky et al. 2012, for the order of the layers.
    """
    return _cifar10(classes, channels, False, generator)


def alexnet_cifar10_bn(
    classes: int = 10, channels: int = 3, generator: np.random.Generator | None = None
) -> nn.Sequential:
    """alexnet_cifar10 with batch normalisation after each convolution, which drops its bias.

    Source: Ioffe and Szegedy 2015, section 3.2.
    """
    return _cifar10(classes, channels, True, generator)


def _cifar10(
    classes: int, channels: int, batch_norm: bool, generator: np.random.Generator | None
) -> nn.Sequential:
    def conv(c: int, oc: int) -> list[nn.Module]:
        filters = nn.Conv2d(c, oc, 3, padding=1, bias=not batch_norm, generator=generator)
        return [filters, *([nn.BatchNorm(oc)] if batch_norm else []), nn.ReLU()]

    return nn.Sequential(
        *conv(channels, 64),
        nn.MaxPool2d(2),  # 16 x 16 x 64
        *conv(64, 192),
        nn.MaxPool2d(2),  # 8 x 8 x 192
        *conv(192, 384),
        *conv(384, 256),
        *conv(256, 256),
        nn.MaxPool2d(2),  # 4 x 4 x 256
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4096, 1024, generator=generator),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(1024, 1024, generator=generator),
        nn.ReLU(),
        nn.Linear(1024, classes, generator=generator),
    )
