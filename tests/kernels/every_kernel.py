"""Runs every kernel at least once, and compares its results with the CPU's."""

from collections import Counter

import numpy as np

from gpucnn import cuda
from gpucnn.commands.check.kernels import cases


def run_all(rng: np.random.Generator, gpu: str) -> tuple[dict[str, float], Counter[str]]:
    """The error of each case, and how often each kernel ran."""
    with cuda.count_launches() as launches:
        errors = {name: case() for name, case in cases(rng, gpu)}
    return errors, launches
