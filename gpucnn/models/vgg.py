"""VGG-16 for CIFAR: deeper than AlexNet, with 3x3 filters only.

AlexNet's filters are 11, 5 and 3 pixels wide.  Here two 3x3 convolutions see 5x5 pixels and three
see 7x7, with fewer weights and a ReLU after each.  The number of channels doubles, up to 512, when
a pool halves the image.
"""

import numpy as np

from gpucnn import nn
from gpucnn.random import spawned

# Filters of each convolution in configuration D; a 2x2 pool follows each row
_ROWS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16_cifar(
    classes: int = 10, channels: int = 3, generator: np.random.Generator | None = None
) -> nn.Sequential:
    """VGG-16 for images (N, 32, 32, channels): logits (N, classes); 15,249,354 trained.

    Thirteen convolutions without bias, each with batch normalisation: without it a plain network
    of this depth hardly starts to learn.  Three linear layers, 512 units wide rather than 4096,
    because five pools reduce a 32x32 image to one pixel.  Dropout 0.5 before the first two linear
    layers.  He initialisation.
    Source: Simonyan and Zisserman 2015, table 1, column D; Ioffe and Szegedy 2015.
    """
    layers: list[nn.Module] = []
    c = channels
    for row in _ROWS:
        for oc in row:
            conv = nn.Conv2d(c, oc, 3, padding=1, bias=False, generator=generator)
            layers += [conv, nn.BatchNorm2d(oc), nn.ReLU()]
            c = oc
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(
        *layers,  # 1 x 1 x 512
        nn.Flatten(),
        nn.Dropout(0.5, spawned(generator)),
        nn.Linear(512, 512, generator=generator),
        nn.ReLU(),
        nn.Dropout(0.5, spawned(generator)),
        nn.Linear(512, 512, generator=generator),
        nn.ReLU(),
        nn.Linear(512, classes, generator=generator),
    )
