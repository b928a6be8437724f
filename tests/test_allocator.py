"""Freed memory is kept for the next step, unless the user has chosen otherwise."""

import subprocess
import sys

import pytest

from gpucnn import allocator

CODE = """
import resource
import numpy as np
import gpucnn
def step():
    np.ones(4 << 20, np.float32)  # 16 MiB, used and freed
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not allocator.keep_freed_memory(), reason="needs glibc's mallopt")
def test_a_freed_array_is_used_again_without_page_faults():
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 20


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_the_environment_has_the_last_word(monkeypatch, variable):
    monkeypatch.setenv(variable, "131072")
    assert not allocator.keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert not allocator.keep_freed_memory()
