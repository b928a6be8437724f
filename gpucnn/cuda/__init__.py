"""Everything between Python and the CUDA driver.

    cuda.launch("max_pool2d_forward", grid, block, x, y, argmax, geometry)

Modules, in reading order:

declarations    parses the kernels' declarations in kernels/*.cu
compiler        compiles a .cu file for a device
launcher        checks the arguments of a launch and runs the kernel
timer           measures time on a device

Two more inspect kernels without a GPU: nvrtc compiles them and counts their registers, sass
disassembles them.
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
