"""LeNet, the network that read cheques: LeCun's of 1998 and Caffe's of 2014.

| function | input   | parameters | what it is                                       |
|----------|---------|-----------:|--------------------------------------------------|
| `lenet5` | 28x28x1 |     61,706 | LeCun's: 6 and 16 filters, average pooling, tanh |
| `lenet`  | 28x28x1 |    431,080 | wider: 20 and 50 filters, max pooling, ReLU      |
"""

import numpy as np

from gpucnn import nn
from gpucnn.models.trained import trained


def lenet5(
    classes: int = 10,
    channels: int = 1,
    generator: np.random.Generator | None = None,
    weights: str | None = None,
) -> nn.Sequential:
    """LeNet-5 for images (N, 28, 28, channels): logits (N, classes).

    It simplifies the source in four ways: pooling has no parameters, the second convolution sees
    all six maps, tanh is not scaled, and the outputs are logits rather than distances.  The
    source's 32x32 images are 28x28 images with a border; here the first convolution pads by 2.
    Glorot initialisation.

    weights="default" loads those that come with gpucnn, trained on MNIST, and sets evaluation mode;
    gpucnn.weights.info("lenet5") tells normalisation and accuracy.
    Source: LeCun et al. 1998, section II.B.
    """
    glorot = nn.init.xavier_uniform

    def conv(c: int, oc: int, padding: int) -> nn.Conv2d:
        return nn.Conv2d(c, oc, 5, padding=padding, weight_init=glorot, generator=generator)

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, weight_init=glorot, generator=generator)

    model = nn.Sequential(
        conv(channels, 6, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),  # 14 x 14 x 6
        conv(6, 16, padding=0),  # 10 x 10 x 16
        nn.Tanh(),
        nn.AvgPool2d(2),  # 5 x 5 x 16
        nn.Flatten(),
        linear(400, 120),
        nn.Tanh(),
        linear(120, 84),
        nn.Tanh(),
        linear(84, classes),
    )
    return trained(model, "lenet5", weights, classes=classes, channels=channels)


def lenet(
    classes: int = 10, channels: int = 1, generator: np.random.Generator | None = None
) -> nn.Sequential:
    """LeNet with ReLU and max pooling for images (N, 28, 28, channels): logits (N, classes).

    Two 5x5 convolutions, each with a 2x2 pool, and 500 hidden units.  Unlike the source it has a
    ReLU after each convolution too.  He initialisation.
    Source: Jia et al. 2014 (Caffe), the MNIST example's network.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 20, 5, generator=generator),  # 24 x 24 x 20
        nn.ReLU(),
        nn.MaxPool2d(2),  # 12 x 12 x 20
        nn.Conv2d(20, 50, 5, generator=generator),  # 8 x 8 x 50
        nn.ReLU(),
        nn.MaxPool2d(2),  # 4 x 4 x 50
        nn.Flatten(),
        nn.Linear(800, 500, generator=generator),
        nn.ReLU(),
        nn.Linear(500, classes, generator=generator),
    )
