"""Ranks as processes that mpiexec starts: for tests of real MPI."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

INSTALL = 'pip install "gpucnn[distributed]"'
ROOT = Path(__file__).parents[2]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def mpiexec() -> str:
    """The path of mpiexec, beside this Python or on PATH; skips the test without MPI."""
    if find_spec("mpi4py") is None:  # importing mpi4py.MPI here would start MPI
        pytest.skip(f"mpi4py is not installed: {INSTALL}")
    beside = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("mpiexec")
    if found is None:
        pytest.skip(f"mpiexec is not installed: {INSTALL}")
    return found


def start_ranks(
    n: int, program: Path, *args: object, runner: tuple[str, ...] = ("-m", "mpi4py")
) -> "subprocess.Popen[str]":
    """Start `mpiexec -n n python runner program args`, in a session of its own.

    A rank computes in one thread, and imports the gpucnn of these tests and their helpers.
    """
    command = [mpiexec(), "-n", n, sys.executable, *runner, program, *args]
    folders = [ROOT, ROOT / "tests", Path(__file__).parent]
    paths = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [str(part) for part in command],
        env=os.environ | dict.fromkeys(THREADS, "1") | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_ranks(
    n: int, program: str, *args: object, timeout: float = 600
) -> "subprocess.CompletedProcess[str]":
    """Run the Python text `program` on n ranks, with sys.argv[1:] = args, to its end.

    The exit status is mpiexec's.  Fails the test, and ends the ranks, after `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(program, encoding="utf-8")
        process = start_ranks(n, path, *args)
        out, err = finish(process, timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def finish(process: "subprocess.Popen[str]", timeout: float = 600) -> tuple[str, str]:
    """Wait for mpiexec; its output and standard error.

    Fails the test, and ends the ranks, after `timeout` seconds.
    """
    try:
        return process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # mpiexec passes it on to its ranks
    try:
        out, err = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    pytest.fail(f"the ranks did not end within {timeout} s\n{out}\n{err}")
