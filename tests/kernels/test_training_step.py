"""A whole training step of AlexNet on a GPU, simulated or real, compared with the CPU."""

from collections.abc import Callable

import numpy as np
from devices import host, relative

import gpucnn
from gpucnn import cuda, models, nn, ops, optim

MOST_LAUNCHES = 60
Arrays = list[np.ndarray]


def one_step(
    device: str, model: nn.Sequential, images: tuple[int, ...] = (0, 1, 2)
) -> tuple[Arrays, int]:
    """Return [loss, *gradients, *updated parameters] of one step, and its number of launches.

    `images` is the order of the three images in the batch.
    """
    gpucnn.manual_seed(1)  # for dropout
    model = model.to(device)
    rng = np.random.default_rng(5)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    order = list(images)
    x = gpucnn.tensor(rng.standard_normal((3, 32, 32, 3), np.float32)[order], device=device)
    labels = gpucnn.tensor(np.array([3, 1, 4])[order], device=device)
    with cuda.count_launches() as launches:
        loss = ops.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
    parameters = model.parameters()
    results = [loss.data, *(p.grad for p in parameters), *(p.data for p in parameters)]
    return [host(a).copy() for a in results], sum(launches.values())


def alexnet() -> nn.Sequential:
    return models.alexnet_cifar10(generator=np.random.default_rng(1))


class InOldOrder(nn.Module):
    """Run a layer on images and features in their original order."""

    def __init__(self, layer: nn.Module, images: np.ndarray, features: np.ndarray) -> None:
        self.layer = layer
        self.order = np.ix_(images, features)
        self.back = np.ix_(np.argsort(images), np.argsort(features))

    def forward(self, x: gpucnn.Tensor) -> gpucnn.Tensor:
        return self.layer(x[self.back])[self.order]


def step_in_another_order(rng: np.random.Generator) -> Arrays:
    """Results of one_step on the CPU with images, channels and hidden units permuted.

    The function and the numbers are the same, but each sum over images, channels or units adds
    its terms in another order, so that only the order of float32 sums explains a difference from
    one_step.
    """
    images = rng.permutation(3)
    layers: list[nn.Module] = []
    # The places of each parameter's elements in the original network.
    places: list[tuple[np.ndarray, ...]] = []
    order, last = np.arange(3), alexnet()[-1]
    for layer in alexnet():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            outputs = layer.weight.shape[0]
            final = isinstance(layer, nn.Linear) and layer.weight.shape == last.weight.shape
            after = np.arange(outputs) if final else rng.permutation(outputs)
            taps = [np.arange(n) for n in layer.weight.shape[1:-1]]
            places += [np.ix_(after, *taps, order), np.ix_(after)]
            layer.weight.data = np.ascontiguousarray(layer.weight.data[places[-2]])
            layer.bias.data = layer.bias.data[places[-1]]
            order = after
        elif isinstance(layer, nn.Flatten):
            pixels = last_pixels(layers)
            order = (np.arange(pixels)[:, None] * len(order) + order).ravel()
        elif isinstance(layer, nn.Dropout):
            layer = InOldOrder(layer, images, order)
        layers.append(layer)
    (loss, *rest), _ = one_step("cpu", nn.Sequential(*layers), tuple(images))
    results = [loss]
    for place, array in zip(places * 2, rest, strict=True):
        results.append(np.empty_like(array))
        results[-1][place] = array
    return results


def last_pixels(layers: list[nn.Module]) -> int:
    """Pixels of the output of `layers` for a 32 x 32 image."""
    with gpucnn.no_grad():
        y = nn.Sequential(*layers)(gpucnn.tensor(np.zeros((1, 32, 32, 3), np.float32)))
    return y.shape[1] * y.shape[2]


def test_a_step_of_alexnet_differs_from_the_cpus_by_no_more_than_reordered_sums_do(
    gpu: str, conv_algorithm: Callable[[str], None]
) -> None:
    """Compare the loss, each gradient and each updated parameter.

    The bounds are measured: twice the largest difference between four other orders of the sums on
    the CPU.  Twice, because four samples seldom include the worst order.  "exact", because
    Winograd's rounding errors on the CPU would hide those of the kernels.
    """
    conv_algorithm("exact")
    on_gpu, launches = one_step(gpu, alexnet())
    on_cpu, _ = one_step("cpu", alexnet())
    reordered = [step_in_another_order(np.random.default_rng(i)) for i in range(4)]
    for number, expected in enumerate(on_cpu):
        allowed = 2 * max(relative(other[number], expected) for other in reordered)
        assert relative(on_gpu[number], expected) <= allowed, number
        assert allowed <= 2e-5, number  # more means that a ReLU or a maximum flipped
    assert 0 < launches <= MOST_LAUNCHES
