"""Limits on memory: what is left, and what happens to BLAS and to threads when little is."""

import subprocess
import sys

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from gpucnn.cpu import limits
from gpucnn.cpu.memory import heap_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells its limits")
MIB = 1 << 20


def test_without_limits_the_free_memory_is_at_most_the_machines():
    memory = limits._sizes(limits.Path("/proc/meminfo"))
    assert 0 < limits.free_memory() < memory["MemTotal"] + memory["SwapTotal"] + limits._THREAD
    before = limits.memory_in_use()
    array = np.ones(64 * MIB, np.uint8)
    assert limits.memory_in_use() - before == pytest.approx(array.nbytes, abs=MIB)
    assert limits.resident_bytes() > array.nbytes


def test_the_limit_of_a_container_counts_without_what_it_caches(monkeypatch, tmp_path):
    group = tmp_path / "outer" / "inner"
    group.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/outer/inner\n")
    for folder, limit, used in ((group, "max", 70), (group.parent, 100, 80)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 50\ninactive_file 30\n")
    text = limits._text

    def read(path):
        return text(tmp_path / "cgroup" if str(path) == "/proc/self/cgroup" else path)

    monkeypatch.setattr(limits, "_text", read)
    monkeypatch.setattr(limits, "_CGROUPS", tmp_path)
    assert limits._containers() == [50]


def test_where_memory_is_unknown_nothing_is_assumed(monkeypatch):
    monkeypatch.setattr(limits, "_text", lambda path: "")
    monkeypatch.setattr(limits, "_limits", list)
    assert limits.free_memory() == 0
    assert limits.resident_bytes() == 0
    assert limits.room_for_a_thread()


CODE = """
import resource
import numpy as np
import gpucnn
from gpucnn.cpu import limits, parallel, workers

def limit(room, which=resource.RLIMIT_AS, name="VmSize"):
    resource.setrlimit(which, (limits._status()[name] + (room << 20), resource.RLIM_INFINITY))

assert not limits.allocations_may_fail()
limit(100, resource.RLIMIT_DATA, "VmData")
assert limits.allocations_may_fail()
before = limits.free_memory() >> 20
kept = np.empty(90 << 20, np.uint8)
print("limit on data:", before, before - (limits.free_memory() >> 20))
del kept
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
limit(100)
before = limits.free_memory() >> 20
kept = np.empty(90 << 20, np.uint8)
print("limit on addresses:", before, before - (limits.free_memory() >> 20))
del kept

gpucnn.set_num_threads(3)
limit(120)
try:
    parallel(lambda _: None, range(9))
except gpucnn.OutOfMemory as error:
    print("no room for BLAS:", error.requested > 120 << 20)
limit(600)
parallel(lambda _: None, range(9))
a, products = np.ones((600, 600), np.float32), np.empty((3, 600, 600), np.float32)
limit(10)
parallel(lambda i: np.matmul(a, a, out=products[i]), range(3))
print("products:", (products == 600).all())

workers._pool.size, done = 40, []
with workers._pool._lock:
    workers._pool._start_helpers()
parallel(done.append, range(50))
print("pieces:", len(done), "threads:", gpucnn.get_num_threads())
"""


BUFFERS = """
from gpucnn.cpu import blas, limits

for count in (2, 8, 8, 6):
    before = limits._status()["VmSize"]
    blas.allocate_buffers(count)
    print((limits._status()["VmSize"] - before) >> 20)
"""


def test_openblas_keeps_a_buffer_for_each_product_at_a_time():
    done = subprocess.run(
        [sys.executable, "-c", BUFFERS], capture_output=True, text=True, timeout=600, check=True
    )
    if all(library["internal_api"] != "openblas" for library in threadpool_info()):
        pytest.skip("NumPy's BLAS is not OpenBLAS")
    two, six_more, *same = map(int, done.stdout.split())
    assert 0 <= two < 100
    assert 6 * 30 < six_more < 8 * 34
    assert same == [0, 0]


KEPT = """
import resource
import numpy as np
from gpucnn.cpu import limits, memory

memory.keep_freed_memory()
arrays = [np.ones(1 << 20, np.uint8) for _ in range(100)]
last = np.ones(1 << 20, np.uint8)
del arrays
resource.setrlimit(
    resource.RLIMIT_AS, (limits._status()["VmSize"] + (20 << 20), resource.RLIM_INFINITY)
)
print(limits.free_memory() >> 20, limits.mappable_memory() >> 20, limits.room_for_a_thread())
"""


def test_a_thread_cannot_use_the_memory_that_the_c_library_keeps():
    done = subprocess.run(
        [sys.executable, "-c", KEPT], capture_output=True, text=True, timeout=600, check=True
    )
    free, mappable, room = done.stdout.split()
    if not heap_bytes()[0]:
        pytest.skip("the C library does not tell what it keeps")
    assert int(free) >= 100
    assert 10 < int(mappable) <= 21
    assert room == "False"


def test_limits_end_neither_in_blas_nor_in_threads_that_never_start():
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", CODE],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    for kind in ("limit on data", "limit on addresses"):
        before, used = map(int, seen[kind].split())
        assert 99 <= before < 110
        assert used == pytest.approx(90, abs=2)
    assert seen["no room for BLAS"] == "True"
    assert seen["products"] == "True"
    assert seen["pieces"] == "50 threads: 3"
    assert "gpucnn uses 3 instead of 40" in done.stderr
