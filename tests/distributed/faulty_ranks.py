"""A training run of several ranks, one of which misbehaves before one of its steps.

    mpiexec -n 2 python -m mpi4py faulty_ranks.py FAULT RANK STEP FLAGS...

The time of a fault that ends the run is that of the file "fault" in the current folder.
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI
from small_script import my_script

from gpucnn import train


def _raise(trainer, images):
    raise RuntimeError("an error of this rank alone")


def _kill(trainer, images):
    os.kill(os.getpid(), signal.SIGKILL)


def _out_of_memory(trainer, images):
    np.empty(1 << 60, np.uint8)


def _nan(trainer, images):
    images.data[0] = np.nan


def _late(trainer, images):
    time.sleep(3)


def _drift(trainer, images):
    trainer.model[0].weight.data[0] += 1


def _full_disk(trainer, images):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))


FAULTS = {
    "none": lambda trainer, images: None,
    "a signal": lambda trainer, images: None,  # that the test sends
    "raise": _raise,
    "kill": _kill,
    "out of memory": _out_of_memory,
    "nan": _nan,
    "late": _late,
    "drift": _drift,
    "full disk": _full_disk,
}


def main(fault, rank, step, *flags):
    train_step = train.Trainer.train_step

    def misbehave(self, images, labels):
        if MPI.COMM_WORLD.rank == int(rank) and self.step == int(step):
            if fault not in ("none", "late"):
                Path("fault").touch()
            FAULTS[fault](self, images)
        train_step(self, images, labels)

    train.Trainer.train_step = misbehave
    return my_script()[0]("--distributed", "--threads", "1", *flags)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
