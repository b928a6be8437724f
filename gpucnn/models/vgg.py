"""VGG-16 for CIFAR: after AlexNet, deeper, out of one kind of window.

Where AlexNet has windows of 11, 5 and 3 pixels, every convolution here is 3x3: two of them see
5x5 pixels and three of them 7x7, with fewer weights and a ReLU after each.  The width doubles
whenever a pool halves the image.
"""

import numpy as np

from gpucnn import nn

# Filters of each convolution of configuration D, with a 2x2 pool after each row
_ROWS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16_cifar(
    classes: int = 10, channels: int = 3, generator: np.random.Generator | None = None
) -> nn.Sequential:
    """VGG-16 for images (N, 32, 32, channels): logits (N, classes); 15,249,354 trained.

    Thirteen convolutions, of which each drops its bias for batch normalisation (without it so
    deep a plain network hardly starts to learn), and three dense layers: 512 units wide, not 4096,
    since five pools leave one pixel of a 32x32 image.  Dropout 0.5 before the first two dense
    layers.  He initialisation.
    Source: Simonyan and Zisserman 2015, table 1, column D; Ioffe and Szegedy 2015.
    """
    layers: list[nn.Module] = []
    c = channels
    for row in _ROWS:
        for oc in row:
            filters = nn.Conv2d(c, oc, 3, padding=1, bias=False, generator=generator)
            layers += [filters, nn.BatchNorm2d(oc), nn.ReLU()]
            c = oc
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(
        *layers,  # 1 x 1 x 512
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(512, 512, generator=generator),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(512, 512, generator=generator),
        nn.ReLU(),
        nn.Linear(512, classes, generator=generator),
    )
