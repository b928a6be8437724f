"""Find and run NVIDIA's command-line tools."""

import glob
import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass

from gpucnn.commands.check.part import Reporter
from gpucnn.commands.check.runner import environment, kill_group

_FOLDERS = {
    "compute-sanitizer": ("compute-sanitizer", "extras/compute-sanitizer", "bin"),
    "ncu": ("bin", "nsight-compute-*"),
}
_NSIGHT = ("/opt/nvidia/nsight-compute/*/ncu", "/usr/local/NVIDIA-Nsight-Compute*/ncu")
INSTALL = {
    "compute-sanitizer": "it is part of the CUDA toolkit: apt install cuda-sanitizer-13-0, or "
    "conda install -c nvidia cuda-sanitizer-api",
    "ncu": "it is part of the CUDA toolkit: apt install cuda-nsight-compute-13-0, or conda "
    "install -c nvidia nsight-compute",
}


@dataclass(frozen=True)
class Output:
    """What a command printed until it ended, or until its time limit."""

    text: str
    status: int | None  # None: killed at its time limit


def find(tool: str) -> str | None:
    """Look for the tool on PATH, in CUDA toolkits and in NVIDIA's wheels; None if not found."""
    path = shutil.which(tool)
    if path:
        return path
    roots = [os.environ.get("CUDA_PATH"), os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    roots += sorted(glob.glob("/usr/local/cuda-*"), reverse=True)
    wheels = importlib.util.find_spec("nvidia")
    for folder in () if wheels is None else wheels.submodule_search_locations or ():
        roots += sorted(glob.glob(f"{folder}/*"), reverse=True)
    patterns = [f"{root}/{inside}/{tool}" for root in roots if root for inside in _FOLDERS[tool]]
    for pattern in [*patterns, *(_NSIGHT if tool == "ncu" else ())]:
        for candidate in sorted(glob.glob(pattern), reverse=True):
            if os.access(candidate, os.X_OK):
                return str(candidate)
    return None


def find_or_skip(reporter: Reporter, tool: str) -> str | None:
    """The path of the tool; if it is missing, None and a finding that says how to install it."""
    path = find(tool)
    if path is None:
        reporter.skip(tool, "not installed", INSTALL[tool])
    return path


def output(command: list[str], seconds: float, **env: str) -> Output:
    """Run a command, such as a program of program.py under a tool, for at most `seconds`.

    The text is standard output and standard error together.  Processes that the command leaves
    behind are killed.
    """
    with tempfile.TemporaryFile() as file:  # a pipe would stay open in those processes
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # closes with this process: end_with_parent in child.py
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(GPUCNN_CHECK_PARENT="1", **env),
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            kill_group(process)
            if process.stdin is not None:
                process.stdin.close()
        file.seek(0)
        return Output(file.read().decode(errors="replace"), status)
