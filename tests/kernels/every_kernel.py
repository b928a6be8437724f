"""Runs every kernel at least once, and compares its results with the CPU's."""

import functools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gpucnn import cuda
from gpucnn.commands.check.kernels import cases
from gpucnn.cuda.specialisations import SPECIALISATIONS
from gpucnn.device import Device


def run_all(rng: np.random.Generator, gpu: str) -> tuple[dict[str, float], Counter[str]]:
    """The error of each case, and how often each kernel ran."""
    if gpu == "cudasim":
        compile_all()
    with cuda.record_launches() as launches:
        errors = {name: case() for name, case in cases(rng, gpu)}
    for launch in launches:
        file = launch.kernel.file
        known = SPECIALISATIONS.get(file)
        assert known is None or dict(launch.defines) in known, (file, launch.defines)
    return errors, Counter(launch.kernel.name for launch in launches)


def compile_all() -> None:
    """Compile for the simulator on all cores: launches would compile one file after another."""
    device = Device("cudasim")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda needed: cuda.compile_file(device, *needed), _needed()))


@functools.cache
def _needed() -> set[tuple[str, tuple[tuple[str, cuda.Define], ...]]]:
    """The files that the cases launch, and the defines of each."""
    with cuda.record_launches(run=False) as launches, np.errstate(all="ignore"):
        for _, case in cases(np.random.default_rng(20), "cudasim"):
            case()
    return {(launch.kernel.file, launch.defines) for launch in launches}
