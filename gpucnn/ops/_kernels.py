"""Whether the CUDA kernels support an array.

The kernels are float32.  Other dtypes use an op's implementation for any array module.  float64,
meant for gradient checks, does so silently; float16, which a user may choose for speed, warns once.
The warning's figures were counted with CuPy 14.2: forward and backward of alexnet_cifar10 launch 50
kernels in float32 and 295 in float16, not counting cuBLAS's.
"""

import warnings

import numpy as np

from gpucnn.device import Array

_warned = False


def takes(op: str, x: Array) -> bool:
    """Whether op's kernels support x, an array on a GPU; the first float16 array warns."""
    if x.dtype == np.float32:
        return True
    if x.dtype == np.float16:
        _warn_once(op)
    return False


def _warn_once(op: str) -> None:
    global _warned
    if _warned:
        return
    _warned = True
    warnings.warn(
        f"{op}: float16 on a GPU is slow: the kernels are float32, and float16 takes the generic "
        "path\n  forward and backward of alexnet_cifar10 launch 295 kernels instead of 50, and "
        "every window of a convolution is copied (9 times the image for 3 x 3)\n"
        "  convert model and images to float32: model.astype('float32')",
        stacklevel=2,
    )
