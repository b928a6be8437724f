"""Everything between Python and the CUDA driver.

    cuda.launch("max_pool2d_forward", grid, block, x, y, argmax, geometry)

In the order in which a launch passes through them:

declarations    reads the kernels and their parameters from kernels/*.cu
compiler        compiles a .cu file for a device
launcher        checks the arguments and launches
timer           measures time on a device

Two more look at kernels without a GPU: nvrtc (compiles them, counts their registers) and sass
(disassembles them).
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
