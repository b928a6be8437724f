"""Freed memory is kept for the next step, unless the user has chosen otherwise, or given back."""

import subprocess
import sys

import pytest

from gpucnn.cpu import memory

CODE = """
import resource
import numpy as np
from gpucnn.cpu import parallel
parallel(lambda piece: None, [0])  # the first use asks glibc to keep what is freed
def step():
    np.ones(4 << 20, np.float32)  # 16 MiB, used and freed
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not memory.keep_freed_memory(), reason="needs glibc's mallopt")
def test_a_freed_array_is_used_again_without_page_faults():
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 20


GIVE_BACK = """
import numpy as np
from gpucnn.cpu import parallel
parallel(lambda piece: None, [0])  # the first use asks glibc to keep what is freed
from gpucnn.cpu import memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
a, b = np.ones(16 << 20, np.float32), np.ones(1)
del a
before = resident()
assert memory.give_back_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(not memory.keep_freed_memory(), reason="needs glibc's mallopt")
def test_freed_memory_goes_back_when_asked_for():
    out = subprocess.run(
        [sys.executable, "-c", GIVE_BACK], capture_output=True, text=True, check=True
    )
    assert int(out.stdout) > 60 << 20  # of 64 MiB


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_the_environment_has_the_last_word(monkeypatch, variable):
    monkeypatch.setenv(variable, "131072")
    assert not memory.keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert not memory.keep_freed_memory()
    assert not memory.give_back_freed_memory()
