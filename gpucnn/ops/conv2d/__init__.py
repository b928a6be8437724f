"""Two-dimensional convolution: start with op.py, then an engine that algorithms.py chooses."""

from gpucnn.ops.conv2d.algorithms import choose_algorithm, get_conv_algorithm, set_conv_algorithm
from gpucnn.ops.conv2d.op import conv2d

__all__ = ["choose_algorithm", "conv2d", "get_conv_algorithm", "set_conv_algorithm"]
