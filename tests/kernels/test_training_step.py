"""A whole step of AlexNet on the simulated device beside the CPU."""

import numpy as np
import pytest
from devices import relative

import gpucnn
from gpucnn import cuda, models, ops, optim

pytestmark = pytest.mark.usefixtures("compiler")

MOST_LAUNCHES = 60


def one_step(device: str, rng: np.random.Generator) -> tuple[float, list[np.ndarray], int]:
    """The loss, every gradient and then every parameter, and the launches."""
    gpucnn.manual_seed(1)
    model = models.alexnet_cifar10().to(device)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images = rng.standard_normal((3, 32, 32, 3), np.float32)
    x = gpucnn.tensor(images, device=device)
    labels = gpucnn.tensor(np.array([3, 1, 4]), device=device)
    with cuda.count_launches() as launches:
        loss = ops.softmax_cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
    tensors = [gpucnn.Tensor(p.grad).numpy() for p in model.parameters()]
    tensors += [p.numpy() for p in model.parameters()]
    return float(loss.item()), tensors, sum(launches.values())


def test_a_step_of_alexnet_gives_the_cpus_loss_gradients_and_parameters(conv_algorithm) -> None:
    # "exact": Winograd's own rounding on the CPU would hide the kernels'.  What is left is the
    # order of float32 sums of up to 3456 terms, about sqrt(3456) * 2**-24 = 3.5e-6, in 8 layers.
    conv_algorithm("exact")
    (loss, on_gpu, launches), (expected, on_cpu, _) = (
        one_step(device, np.random.default_rng(5)) for device in ("cudasim", "cpu")
    )
    assert loss == pytest.approx(expected, rel=1e-5)
    assert max(map(relative, on_gpu, on_cpu)) <= 3e-5
    assert 0 < launches <= MOST_LAUNCHES
