"""Data-parallel training: one process a device, started by mpiexec.

communicator     what the processes say to each other
mpi              through MPI: CPUs, the simulator, Python objects
nccl             through NCCL: NVIDIA GPUs
optimizer, wire  an optimizer whose gradients are the mean over the processes, and their format
sync_batch_norm  batch normalisation over all processes' images
"""

from gpucnn.distributed.communicator import Communicator, Work
from gpucnn.distributed.mpi import MPICommunicator
from gpucnn.distributed.nccl import NcclCommunicator, local_device
from gpucnn.distributed.optimizer import DistributedOptimizer
from gpucnn.distributed.sync_batch_norm import SyncBatchNorm, convert_sync_batchnorm

__all__ = [
    "Communicator",
    "DistributedOptimizer",
    "MPICommunicator",
    "NcclCommunicator",
    "SyncBatchNorm",
    "Work",
    "convert_sync_batchnorm",
    "local_device",
]
