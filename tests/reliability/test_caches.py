"""The cache of compiled kernels survives kills, damage, odd paths and full disks."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpucnn import cudasim
from gpucnn.cudasim import cache
from gpucnn.cudasim import compiler as compiler_of_kernels
from gpucnn.errors import OutputError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
CODE = 'extern "C" __global__ void count(int* x) { x[threadIdx.x] += STEP; }'


@pytest.fixture
def folder(monkeypatch, tmp_path, compiler: None):
    """The cache folder, empty."""
    compiler_of_kernels.runtime()  # stays loaded from the user's cache
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache.cache_folder()


def count(step):
    x = cudasim.zeros(4, np.int32)
    module = cudasim.RawModule(code=CODE, options=(f"-DSTEP={step}",))
    module.get_function("count")((1,), (4,), (x,))
    assert x.get().tolist() == [step] * 4


def test_a_killed_compile_leaves_no_damage_and_its_files_are_removed(folder, tally):
    start = time.perf_counter()
    count(0)
    whole = time.perf_counter() - start
    for kill in range(12):
        with tally("a compile of a CUDA kernel killed half way"):
            child = os.fork()
            if child == 0:
                os.setsid()  # so that this test can end the compiler too
                count(100 + kill)
                os._exit(0)
            time.sleep(whole * (kill + 0.5) / 12)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            for path in folder.glob("*.so"):
                assert cache.find(folder, path.name.split(".")[0]) == path
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
    for kill in range(0, 12, 4):
        count(100 + kill)
    assert all(path.suffix == ".so" for path in folder.iterdir())


def test_a_damaged_entry_is_never_loaded(folder, tally):
    rng = np.random.default_rng(0)
    count(1)
    (path,) = folder.glob("*.so")
    whole = path.read_bytes()
    for number in range(60):
        content = np.frombuffer(whole, np.uint8).copy()
        if number % 4 == 0:
            content[rng.integers(content.size)] ^= 1 << rng.integers(8)
        elif number % 4 == 1:
            content = content[: rng.integers(content.size)]
        elif number % 4 == 2:
            content = rng.integers(0, 256, rng.integers(5000), np.uint8)
        else:
            content = content[:0]
        path.unlink(missing_ok=True)  # the library is mapped: give the name a new file
        path.write_bytes(content.tobytes())
        with tally("a damaged, empty or foreign file in the cache of kernels"):
            if number < 4:
                count(1)  # compiles it again
            else:
                found = cache.find(folder, path.name.split(".")[0])
                assert found != path  # it may be a whole one, compiled again above
                assert found is not None or not path.exists()


def test_a_full_disk_ends_a_compile_in_a_message(folder, tally):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 100, 2000, 8192):
        with tally("a full disk while a CUDA kernel is compiled"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                with pytest.raises(OutputError, match="cannot be written"):
                    count(5)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(folder.iterdir()) == []


PROGRAM = """
import os, sys
from pathlib import Path
from gpucnn import cudasim
from gpucnn.cudasim import compiler
compiler.NATIVE = Path(sys.argv[1], "gpucnn", "cudasim", "native")
x = cudasim.zeros(4, "int32")
source = "#line 7 \\"" + sys.argv[2] + "/kernel.cu\\"\\n"
source += 'extern "C" __global__ void f(int* x) { x[1 << 20] = 1; }'
os.environ["GPUCNN_CUDASIM"] = "address"
try:
    cudasim.RawModule(code=source).get_function("f")((1,), (1,), (x,))
except Exception as error:
    print(error)
"""


def test_any_path_will_do(tmp_path, tally, compiler):
    odd = tmp_path / "a \"b\" ü\n\\c 'd'"
    (odd / "tmp").mkdir(parents=True)
    (odd / "gpucnn").symlink_to(Path(cudasim.__file__).parents[1])
    escaped = str(odd).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    with tally("quotes, spaces or line breaks in the paths of cache, home and checkout"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(odd), escaped],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "XDG_CACHE_HOME": str(odd / "cache"), "TMPDIR": str(odd / "tmp")},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("f: block (0, 0, 0), thread (0, 0, 0)")
        assert "at kernel.cu:7" in done.stdout
        assert len(list((odd / "cache" / "gpucnn" / "cudasim").glob("*.so"))) == 2
        assert list((odd / "tmp").iterdir()) == []
