"""ResNet-18 for CIFAR: residual blocks, which made a hundred layers trainable.

A block adds the output of its two convolutions to its input.  It starts close to the identity, and
gradients reach every layer through the sums.  One linear layer remains, without dropout; its input
is the mean of each channel over the image.
"""

import numpy as np

from gpucnn import nn
from gpucnn.tensor import Tensor


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)): (N, H, W, C) to (N, H/stride, W/stride, OC).

    The shortcut is the identity, or a 1x1 convolution where the shape changes.
    Source: He et al. 2016, figure 2 and section 3.3, option B.
    """

    def __init__(
        self, c: int, oc: int, stride: int, generator: np.random.Generator | None = None
    ) -> None:
        self.body = nn.Sequential(
            nn.Conv2d(c, oc, 3, stride, padding=1, bias=False, generator=generator),
            nn.BatchNorm2d(oc),
            nn.ReLU(),
            nn.Conv2d(oc, oc, 3, padding=1, bias=False, generator=generator),
            nn.BatchNorm2d(oc),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or c != oc:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c, oc, 1, stride, bias=False, generator=generator), nn.BatchNorm2d(oc)
            )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


def resnet18_cifar(
    classes: int = 10, channels: int = 3, generator: np.random.Generator | None = None
) -> nn.Sequential:
    """ResNet-18 for images (N, 32, 32, channels): logits (N, classes); 11,173,962 trained.

    The first convolution is 3x3 with stride 1, without a pool: ImageNet's 7x7 convolution with
    stride 2 and its pool would reduce a 32x32 image to 8x8.  Four stages of two blocks follow, with
    64, 128, 256 and 512 channels at 32, 16, 8 and 4 pixels.  He initialisation.
    Source: He et al. 2016, table 1, column 18-layer.
    """
    blocks: list[nn.Module] = []
    c = 64
    for oc, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [BasicBlock(c, oc, stride, generator), BasicBlock(oc, oc, 1, generator)]
        c = oc
    return nn.Sequential(
        nn.Conv2d(channels, 64, 3, padding=1, bias=False, generator=generator),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        *blocks,  # 4 x 4 x 512
        nn.GlobalAvgPool2d(),
        nn.Linear(512, classes, generator=generator),
    )
