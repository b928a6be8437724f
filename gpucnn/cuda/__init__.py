"""Everything between Python and the CUDA driver.

    cuda.launch("max_pool2d_forward", grid, block, x, y, argmax, geometry)

Modules, in reading order:

declarations    parses the kernels' declarations in kernels/*.cu
compiler        compiles a .cu file for a device
launcher        checks the arguments of a launch and runs the kernel
step_values     values that change from step to step, for a captured step
timer           measures time on a device
card            what plans know of a GPU: compute capability, number of multiprocessors
roofline        a model of the time of a launch
tensor_plan     tiles and splits of a product on tensor cores
counters        zeros by which the last block of a launch recognises itself

Two more inspect kernels without a GPU: nvrtc compiles them and counts their registers, sass
disassembles them.
"""

from gpucnn.cuda.card import Card, card_of, set_reference_card
from gpucnn.cuda.compiler import OPTIONS, compile_file, compiling, options
from gpucnn.cuda.counters import counters
from gpucnn.cuda.declarations import Define, assemble, c_type, kernel, kernels
from gpucnn.cuda.launcher import (
    Launch,
    count_launches,
    launch,
    launch_elementwise,
    record_launches,
    struct_values,
)
from gpucnn.cuda.step_values import refuse_capture, step_value
from gpucnn.cuda.timer import Timer

__all__ = [
    "OPTIONS",
    "Card",
    "Define",
    "Launch",
    "Timer",
    "assemble",
    "c_type",
    "card_of",
    "compile_file",
    "compiling",
    "count_launches",
    "counters",
    "kernel",
    "kernels",
    "launch",
    "launch_elementwise",
    "options",
    "record_launches",
    "refuse_capture",
    "set_reference_card",
    "step_value",
    "struct_values",
]
