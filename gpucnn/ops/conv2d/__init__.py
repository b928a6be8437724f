"""Two-dimensional convolution: op.py first, then the engine that algorithms.py chooses."""

from gpucnn.ops.conv2d.op import conv2d, conv_algorithm, get_conv_algorithm, set_conv_algorithm

__all__ = ["conv2d", "conv_algorithm", "get_conv_algorithm", "set_conv_algorithm"]
