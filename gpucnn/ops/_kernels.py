"""Which arrays the CUDA kernels take, asked in one place.

The kernels are float32.  Everything else takes an op's form for any array module: float64, which is
there to check gradients, without a word, and float16, which looks like a way to be faster, with one
warning.  Its figures were counted under CuPy 14.2: forward and backward of alexnet_cifar10 are 50
launches in float32, 295 in float16, both without cuBLAS's.
"""

import warnings

import numpy as np

from gpucnn.device import Array

_said = False


def takes(op: str, x: Array) -> bool:
    """Whether op's kernels take x, an array of a GPU.  The first float16 of the process warns."""
    if x.dtype == np.float32:
        return True
    if x.dtype == np.float16:
        _say_once(op)
    return False


def _say_once(op: str) -> None:
    global _said
    if _said:
        return
    _said = True
    warnings.warn(
        f"{op}: float16 on a GPU is slow: the kernels are float32, and float16 takes the generic "
        "path\n  forward and backward of alexnet_cifar10 launch 295 kernels, with float32 50, and "
        "every window of a convolution is copied (9 times the image for 3 x 3)\n"
        "  convert model and images to float32: model.astype('float32')",
        stacklevel=2,
    )
