"""Everything between Python and the CUDA driver: a kernel's declaration, its binary, its launch.

cuda.launch("max_pool2d_forward", grid, block, x, y, argmax, geometry)
"""

from gpucnn.cuda.compiler import OPTIONS, compile_file, compiling, options
from gpucnn.cuda.declarations import assemble, kernel, kernels
from gpucnn.cuda.launcher import (
    Launch,
    count_launches,
    launch,
    launch_elementwise,
    record_launches,
    struct_values,
)
from gpucnn.cuda.timer import Timer

__all__ = [
    "OPTIONS",
    "Launch",
    "Timer",
    "assemble",
    "compile_file",
    "compiling",
    "count_launches",
    "kernel",
    "kernels",
    "launch",
    "launch_elementwise",
    "options",
    "record_launches",
    "struct_values",
]
