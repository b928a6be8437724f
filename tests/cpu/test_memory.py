"""Aligned arrays, scratch buffers, and freed memory that is kept or returned to the system."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from gpucnn.cpu import empty, memory, scratch


def test_scratch_belongs_to_its_thread():
    mine = scratch("test", (4,), np.float32)
    assert scratch("test", (2, 2), np.float32).base is mine.base
    others = []
    other = threading.Thread(target=lambda: others.append(scratch("test", (4,), np.float32)))
    other.start()
    other.join()
    assert not np.shares_memory(mine, others[0])


def test_a_scratch_buffer_that_grew_is_shared_by_all_shapes():
    small = scratch("grows", (3,), np.float32)
    large = scratch("grows", (300,), np.float32)
    again = scratch("grows", (3,), np.float32)
    assert not np.shares_memory(small, again)
    assert np.shares_memory(large, again)
    assert scratch("grows", (3,), np.float32) is again


def test_scratch_caches_a_limited_number_of_views():
    for size in range(1, 3000):
        scratch("many", (size,), np.uint8)
    assert len(memory._buffers().views) <= 1000


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (1000, 100)])
def test_empty_and_scratch_are_aligned_to_a_cache_line(shape):
    for array in (empty(shape, np.float64), scratch("aligned", shape, np.float64)):
        assert (array.shape, array.dtype) == (shape, np.float64)
        assert array.ctypes.data % 64 == 0


# --- glibc ---

CODE = """
import resource
import numpy as np
from gpucnn.cpu import parallel
parallel(lambda piece: None, [0])  # the first use makes glibc keep freed memory
def step():
    np.ones(4 << 20, np.float32)  # 16 MiB, used and freed
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not memory.keep_freed_memory(), reason="needs glibc's mallopt")
def test_freed_memory_is_reused_without_page_faults():
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 20


GIVE_BACK = """
import numpy as np
from gpucnn.cpu import parallel
parallel(lambda piece: None, [0])  # the first use makes glibc keep freed memory
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
def test_give_back_freed_memory_returns_it_to_the_system():
    out = subprocess.run(
        [sys.executable, "-c", GIVE_BACK], capture_output=True, text=True, check=True
    )
    assert int(out.stdout) > 60 << 20  # of 64 MiB


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_mallocs_environment_variables_take_precedence(monkeypatch, variable):
    monkeypatch.setenv(variable, "131072")
    assert not memory.keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert not memory.keep_freed_memory()
    assert not memory.give_back_freed_memory()
