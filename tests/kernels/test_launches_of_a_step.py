"""How many kernels a training step of alexnet_cifar10 launches, and which."""

from collections import Counter
from contextlib import nullcontext

import pytest

import gpucnn
from gpucnn.commands.launches import of_model

MOST = 36  # in a step: a batch, forward pass, loss, backward pass and optimizer


def launches(dtype: str | None, *phases: str) -> list[str]:
    """The kernels that `phases` of alexnet_cifar10 launch for 128 images, in order."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    with gpucnn.autocast(dtype) if dtype else nullcontext():
        recorded = of_model("alexnet_cifar10", 128, phases)
    return [launch.kernel.name for phase in phases for launch in recorded[phase]]


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_a_step_launches_few_kernels_and_none_that_only_masks_or_sums(dtype):
    names = launches(dtype, "batch", "training")
    assert len(names) <= MOST, Counter(names)
    # A convolution or a product masks for the ReLU before it, and sums its own bias and splits.
    alone = {"relu_forward", "relu_backward", "column_sums", "sum_splits"}
    # the float16 loss is scaled, so its gradient stays float32 until then
    allowed = {"scale_gradient"} if dtype == "float16" else set()
    assert alone & set(names) == set()
    kinds = Counter(name.split("_")[0] for name in names)
    kinds.pop("scale", None) if allowed else None
    assert dict(kinds) == {
        "crop": 1,
        "conv2d": 14,  # five layers: three products each, but none for the gradient of the images
        "max": 6,
        "dropout": 2,  # backward: the products mask
        "gemm": 9,
        "cross": 1,  # with its gradient
        "sgd": 1,
    }


def test_inference_launches_one_kernel_a_layer():
    names = launches(None, "inference")
    kinds = Counter(name.split("_")[0] for name in names)
    assert dict(kinds) == {"conv2d": 5, "max": 3, "gemm": 3}
