"""Every AlexNet.

| function              | input     | parameters | what it is                                     |
|-----------------------|-----------|-----------:|------------------------------------------------|
| `alexnet`             | 227x227x3 | 60,965,224 | 2012: two groups, LRN, overlapping pools       |
| `alexnet(groups=1)`   | 227x227x3 | 62,378,344 | the same; every filter sees every channel      |
| `alexnet_torchvision` | 224x224x3 | 61,100,840 | 2014: narrower, no groups, no LRN              |
| `alexnet_keras`       | 227x227x1 | 74,822,466 | the lecture's: batch normalisation, 10 classes |
| `alexnet_cifar10`     | 32x32x3   |  7,506,762 | five 3x3 convolutions, three pools, dropout    |
| `alexnet_cifar10_bn`  | 32x32x3   |  7,510,218 | the same with batch normalisation              |
| `cuda_convnet_18pct`  | 32x32x3   |     89,578 | Krizhevsky's small net: 18 % error on CIFAR-10 |

The counts include the running statistics of batch normalisation, which are not trained: 2,752 in
alexnet_keras and 2,304 in alexnet_cifar10_bn.  All return logits; the loss applies the softmax.
"""

import numpy as np

from gpucnn import nn, ops
from gpucnn.random import spawned
from gpucnn.tensor import Tensor


def alexnet(
    classes: int = 1000,
    channels: int = 3,
    groups: int = 2,
    generator: np.random.Generator | None = None,
) -> nn.Sequential:
    """AlexNet of 2012 for images (N, 227, 227, channels): logits (N, classes).

    Convolutions 2, 4 and 5 have two groups, one for each of the two GPUs in the source; groups=1
    merges them.  The source states 224 pixels, but its first convolution has 55 output columns
    without padding, which needs (55 - 1) * 4 + 11 = 227.

    Weights start Gaussian with standard deviation 0.01.  Biases start at 1 in convolutions 2, 4 and
    5 and in the hidden linear layers, at 0 elsewhere.
    Source: Krizhevsky et al. 2012, sections 3.5, 4.2 and 5.
    """

    gaussian, constant = nn.init.normal(0.01), nn.init.constant

    def conv(
        c: int, oc: int, kernel_size: int, stride: int, padding: int, groups: int, bias: float
    ) -> nn.Conv2d:
        return nn.Conv2d(
            c, oc, kernel_size, stride, padding, groups=groups,
            weight_init=gaussian, bias_init=constant(bias), generator=generator,
        )  # fmt: skip

    def linear(inputs: int, outputs: int, bias: float) -> nn.Linear:
        return nn.Linear(
            inputs, outputs, weight_init=gaussian, bias_init=constant(bias), generator=generator
        )

    return nn.Sequential(
        conv(channels, 96, 11, stride=4, padding=0, groups=1, bias=0),  # 55 x 55 x 96
        nn.ReLU(),
        nn.LocalResponseNorm(),
        nn.MaxPool2d(3, 2),  # 27 x 27 x 96
        conv(96, 256, 5, stride=1, padding=2, groups=groups, bias=1),
        nn.ReLU(),
        nn.LocalResponseNorm(),
        nn.MaxPool2d(3, 2),  # 13 x 13 x 256
        conv(256, 384, 3, stride=1, padding=1, groups=1, bias=0),
        nn.ReLU(),
        conv(384, 384, 3, stride=1, padding=1, groups=groups, bias=1),
        nn.ReLU(),
        conv(384, 256, 3, stride=1, padding=1, groups=groups, bias=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),  # 6 x 6 x 256
        nn.Flatten(),
        linear(9216, 4096, bias=1),
        nn.ReLU(),
        nn.Dropout(0.5, spawned(generator)),
        linear(4096, 4096, bias=1),
        nn.ReLU(),
        nn.Dropout(0.5, spawned(generator)),
        linear(4096, classes, bias=0),
    )


def alexnet_torchvision(
    classes: int = 1000, channels: int = 3, generator: np.random.Generator | None = None
) -> nn.Sequential:
    """torchvision's AlexNet for images (N, 224, 224, channels): logits (N, classes).

    Other sizes from 63 pixels up work too: adaptive pooling reduces them to 6x6.  `gpucnn convert`
    converts torchvision's weights.  He initialisation.
    Source: Krizhevsky 2014 ("One weird trick"), section 5, and torchvision.models.alexnet.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 64, 11, stride=4, padding=2, generator=generator),  # 55 x 55 x 64
        nn.ReLU(),
        nn.MaxPool2d(3, 2),  # 27 x 27 x 64
        nn.Conv2d(64, 192, 5, padding=2, generator=generator),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),  # 13 x 13 x 192
        nn.Conv2d(192, 384, 3, padding=1, generator=generator),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, generator=generator),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1, generator=generator),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),  # 6 x 6 x 256
        nn.AdaptiveAvgPool2d(6),
        nn.Flatten(),
        nn.Dropout(0.5, spawned(generator)),
        nn.Linear(9216, 4096, generator=generator),
        nn.ReLU(),
        nn.Dropout(0.5, spawned(generator)),
        nn.Linear(4096, 4096, generator=generator),
        nn.ReLU(),
        nn.Linear(4096, classes, generator=generator),
    )


def alexnet_keras(
    classes: int = 10, channels: int = 1, generator: np.random.Generator | None = None
) -> nn.Sequential:
    """The lecture's Keras model for images (N, 227, 227, channels): logits (N, classes).

    Batch normalisation follows the ReLU of each convolution, with Keras's momentum and epsilon.
    The fourth convolution is 1x1, and a linear layer of 1000 units precedes the last one.  Glorot
    initialisation, Keras's default.
    Source: E. Valla, "Introduction to Deep Learning. Convolutional Neural Networks", 2022.
    """

    glorot = nn.init.xavier_uniform

    def conv(c: int, oc: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
        layer = nn.Conv2d(
            c, oc, kernel_size, stride, "same", weight_init=glorot, generator=generator
        )
        return [layer, nn.ReLU(), nn.BatchNorm2d(oc, eps=1e-3, momentum=0.01)]

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, weight_init=glorot, generator=generator)

    return nn.Sequential(
        *conv(channels, 96, 11, stride=4),  # 57 x 57 x 96
        nn.MaxPool2d(2),  # 28 x 28 x 96
        *conv(96, 256, 5),
        nn.MaxPool2d(3, 2),  # 13 x 13 x 256
        *conv(256, 384, 3),
        *conv(384, 384, 1),
        *conv(384, 256, 3),
        nn.MaxPool2d(2, padding="same"),  # 7 x 7 x 256
        nn.Flatten(),
        linear(12544, 4096),
        nn.ReLU(),
        nn.Dropout(0.4, spawned(generator)),
        linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(0.4, spawned(generator)),
        linear(4096, 1000),
        nn.ReLU(),
        nn.Dropout(0.4, spawned(generator)),
        linear(1000, classes),
    )


def alexnet_cifar10(
    classes: int = 10, channels: int = 3, generator: np.random.Generator | None = None
) -> nn.Sequential:
    """AlexNet for images (N, 32, 32, channels): logits (N, classes).

    Krizhevsky's five convolutions, three pools and three linear layers, scaled to a 32x32 image:
    3x3 filters, 2x2 pools, a ReLU after every convolution and hidden linear layer, dropout 0.5
    before the first two linear layers.  He initialisation from `generator` (None: the default one);
    biases start at zero.
    Source: Krizhevsky et al. 2012, for the order of the layers.
    """
    return _cifar10(classes, channels, False, generator)


def alexnet_cifar10_bn(
    classes: int = 10, channels: int = 3, generator: np.random.Generator | None = None
) -> nn.Sequential:
    """alexnet_cifar10 with batch normalisation after each convolution, which then has no bias.

    Source: Ioffe and Szegedy 2015, section 3.2.
    """
    return _cifar10(classes, channels, True, generator)


def _cifar10(
    classes: int, channels: int, batch_norm: bool, generator: np.random.Generator | None
) -> nn.Sequential:
    def conv(c: int, oc: int) -> list[nn.Module]:
        layer = nn.Conv2d(c, oc, 3, padding=1, bias=not batch_norm, generator=generator)
        return [layer, *([nn.BatchNorm2d(oc)] if batch_norm else []), nn.ReLU()]

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
        nn.Dropout(0.5, spawned(generator)),
        nn.Linear(4096, 1024, generator=generator),
        nn.ReLU(),
        nn.Dropout(0.5, spawned(generator)),
        nn.Linear(1024, 1024, generator=generator),
        nn.ReLU(),
        nn.Linear(1024, classes, generator=generator),
    )


class MapResponseNorm(nn.Module):
    """y = x / (1 + scale * mean of squares in a size x size neighbourhood) ** power.

    (N, H, W, C) to the same shape.  Each channel is normalised by itself, whereas LocalResponseNorm
    sums over channels.  Pixels outside the image count as zeros.  size is odd.
    Source: cuda-convnet, layer type "rnorm".
    """

    def __init__(self, size: int, scale: float, power: float) -> None:
        self.size, self.scale, self.power = size, scale, power

    def forward(self, x: Tensor) -> Tensor:
        squares = ops.avg_pool2d(x * x, self.size, 1, padding=self.size // 2)
        return x * ops.power(squares * self.scale + 1.0, -self.power)

    def extra_repr(self) -> str:
        return f"size={self.size}, scale={self.scale}, power={self.power}"


def cuda_convnet_18pct(
    classes: int = 10, channels: int = 3, generator: np.random.Generator | None = None
) -> nn.Sequential:
    """The net of cuda-convnet's layers-18pct.cfg, (N, 32, 32, channels): logits (N, classes).

    An earlier network by AlexNet's author, with 18 % error on CIFAR-10: three 5x5 convolutions,
    overlapping pools (one max, two average), response normalisation within each channel, one linear
    layer.  Weights start Gaussian, with standard deviation 0.0001 in the first layer and 0.01 in
    the others; biases start at zero.
    Source: A. Krizhevsky, cuda-convnet, example-layers/layers-18pct.cfg, 2011.
    """

    def conv(c: int, oc: int, std: float) -> nn.Conv2d:
        return nn.Conv2d(c, oc, 5, padding=2, weight_init=nn.init.normal(std), generator=generator)

    def avg_pool() -> nn.AvgPool2d:
        return nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False)

    return nn.Sequential(
        conv(channels, 32, 0.0001),
        nn.MaxPool2d(3, 2, ceil_mode=True),  # 16 x 16 x 32
        nn.ReLU(),
        MapResponseNorm(3, 5e-5, 0.75),
        conv(32, 32, 0.01),
        nn.ReLU(),
        avg_pool(),  # 8 x 8 x 32
        MapResponseNorm(3, 5e-5, 0.75),
        conv(32, 64, 0.01),
        nn.ReLU(),
        avg_pool(),  # 4 x 4 x 64
        nn.Flatten(),
        nn.Linear(1024, classes, weight_init=nn.init.normal(0.01), generator=generator),
    )
