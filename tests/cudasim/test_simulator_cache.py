"""The cache of compiled kernels: what is damaged, foreign or writable by others is not loaded."""

import os
import subprocess
import sys

import numpy as np
import pytest

from gpucnn import cudasim
from gpucnn.cudasim import cache, compiler
from gpucnn.errors import DeviceError, KernelError, OutputError

COUNT = 'extern "C" __global__ void count(int* x) { x[threadIdx.x] += STEP; }'


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The cache folder, empty."""
    cudasim.require_compiler()
    compiler.runtime()  # stays loaded from the user's cache
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache._warn_once.cache_clear()
    return tmp_path / "gpucnn" / "cudasim"


def count():
    x = cudasim.zeros(4, np.int32)
    module = cudasim.RawModule(code=COUNT, options=("-DSTEP=3",))
    module.get_function("count")((1,), (4,), (x,))
    return x.get().tolist()


@pytest.mark.parametrize(("mode", "libraries"), [("fast", 1), ("address", 1), ("debug", 2)])
def test_a_kernel_is_compiled_again_in_another_folder_only_for_a_debugger(
    folder, mode, libraries, monkeypatch
):
    monkeypatch.setenv("GPUCNN_CUDASIM", mode)
    for path in ("/first/count.cu", "/second one/count.cu"):
        module = cudasim.RawModule(code=f'#line 1 "{path}"\n{COUNT}', options=("-DSTEP=4",))
        module.compile()
    assert len(entries(folder)) == libraries


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def replace(path, content):
    """Write a new file: this process has mapped the old one, and would crash if it shrank."""
    path.unlink()
    path.write_bytes(content)


def test_an_empty_or_damaged_entry_is_compiled_again(folder):
    assert count() == [3] * 4
    (name,) = entries(folder)
    replace(folder / name, b"")
    assert count() == [3] * 4
    (name,) = entries(folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 4
    replace(folder / name, content)
    assert cache.find(folder, name.split(".")[0]) is None
    assert entries(folder) == []


def test_an_entry_that_others_can_write_or_own_is_not_loaded(folder, monkeypatch):
    made = folder.parent / "made"
    cache.cache_folder()
    made.write_bytes(b"a library")
    path = cache.add(folder, "kernels-1", made)
    assert cache.find(folder, "kernels-1") == path
    path.chmod(0o664)
    assert cache.find(folder, "kernels-1") is None
    path.chmod(0o644)
    link = folder / path.name.replace("kernels-1", "kernels-2")
    link.symlink_to(path)
    assert cache.find(folder, "kernels-2") is None
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert cache.find(folder, "kernels-1") is None
    assert path.exists()


@pytest.mark.parametrize("which", ["folder", "its parent", "owner"])
def test_a_folder_that_others_can_write_is_replaced_by_a_temporary_one(folder, which, monkeypatch):
    assert cache.cache_folder() == folder
    if which == "owner":
        mine = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    else:
        (folder if which == "folder" else folder.parent).chmod(0o777)
    with pytest.warns(RuntimeWarning, match="other users can write it"):
        used = cache.cache_folder()
    assert folder not in (used, *used.parents)
    assert cache.cache_folder() == used  # without another warning


def test_a_new_cache_is_private_whatever_the_umask(folder):
    before = os.umask(0)
    try:
        count()
    finally:
        os.umask(before)
    (name,) = entries(folder)
    assert [p.stat().st_mode & 0o022 for p in (folder.parent, folder, folder / name)] == [0, 0, 0]


def test_the_folder_of_a_process_without_a_cache_is_removed_at_its_exit(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "tmp").mkdir()
    code = """
import os
from gpucnn.cudasim import cache
folder = cache.cache_folder()
if os.fork() == 0:
    raise SystemExit  # a child that exits does not remove its parent's folder
os.wait()
print(folder.is_dir(), folder)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "XDG_CACHE_HOME": str(tmp_path / "file"),
            "TMPDIR": str(tmp_path / "tmp"),
        },
    )
    assert done.stdout.startswith(f"True {tmp_path / 'tmp' / 'gpucnn-cudasim-'}")
    assert list((tmp_path / "tmp").iterdir()) == []


# --- compilers that fail ---


@pytest.fixture
def compile_with(folder, monkeypatch):
    """compile_with(script) compiles a kernel with a shell script as the compiler."""

    def run(script):
        path = folder.parent.parent / "compiler"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(compiler, "compiler", lambda: (str(path), "1"))
        count()

    return run


def test_a_full_disk_is_an_output_error_that_names_the_cache(compile_with, folder):
    with pytest.raises(OutputError, match=r"cudasim cannot be written \(No space left on device\)"):
        compile_with("echo 'cc1plus: fatal error: No space left on device' >&2; exit 1")
    assert entries(folder) == []


def test_a_compilers_message_may_have_any_bytes(compile_with):
    with pytest.raises(KernelError, match="cannot compile a kernel\n\ufffd"):
        compile_with(r"printf '\377' >&2; exit 1")


def test_a_compiler_that_cannot_start_is_a_device_error(folder, monkeypatch):
    monkeypatch.setattr(compiler, "compiler", lambda: ("/nowhere/g++", "1"))
    with pytest.raises(DeviceError, match=r"cannot start /nowhere/g\+\+ \(No such file"):
        count()


def test_a_library_that_cannot_be_loaded_is_a_device_error(compile_with):
    with pytest.raises(
        DeviceError, match=r"cannot load a compiled kernel .*\n  set XDG_CACHE_HOME"
    ):
        compile_with('for last; do :; done; echo "no library" > "$last"')


def test_a_first_kernel_that_does_nothing_does_not_hinder_the_next_one(tmp_path):
    code = """
import numpy as np
from gpucnn import cudasim
x = cudasim.zeros(4, np.int32)
for body in ("", "x[threadIdx.x] = 1;"):
    module = cudasim.RawModule(code='extern "C" __global__ void f(int* x) { %s }' % body)
    module.get_function("f")((1,), (4,), (x,))
print(x.get().sum())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "4\n", done.stderr


THREADS = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from gpucnn import cudasim

def count(step):
    x = cudasim.zeros(4, np.int32)
    code = 'extern "C" __global__ void count(int* x) { x[threadIdx.x] += %d; }' % step
    cudasim.RawModule(code=code).get_function("count")((1,), (4,), (x,))
    return x.get().tolist()

with ThreadPoolExecutor(2) as pool:
    print(list(pool.map(count, (1, 2))))
"""


@pytest.mark.slow  # it compiles the runtime
def test_threads_that_start_the_simulator_at_once_compile_one_runtime(tmp_path):
    cudasim.require_compiler()
    answer = subprocess.run(
        [sys.executable, "-c", THREADS],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert answer.stdout == "[[1, 1, 1, 1], [2, 2, 2, 2]]\n", answer.stderr
    names = entries(tmp_path / "gpucnn" / "cudasim")
    assert len([name for name in names if name.startswith("runtime")]) == 1
