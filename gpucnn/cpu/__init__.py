"""Support for the ops on the CPU: worker threads, memory and BLAS.

The counterpart of gpucnn.cuda.  NumPy computes; this package splits the work over threads, reuses
buffers and controls BLAS's own threads.
"""

from gpucnn.cpu.blas import single_threaded_blas
from gpucnn.cpu.memory import (
    empty,
    flat,
    give_back_freed_memory,
    new_scratch,
    scratch,
    scratch_bytes,
)
from gpucnn.cpu.workers import (
    Work,
    alone,
    blocks,
    get_num_threads,
    parallel,
    parallel_all,
    set_num_threads,
    spans,
    usable_cores,
)

__all__ = [
    "Work",
    "alone",
    "blocks",
    "empty",
    "flat",
    "get_num_threads",
    "give_back_freed_memory",
    "new_scratch",
    "parallel",
    "parallel_all",
    "scratch",
    "scratch_bytes",
    "set_num_threads",
    "single_threaded_blas",
    "spans",
    "usable_cores",
]
