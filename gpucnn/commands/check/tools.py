"""NVIDIA's command-line tools: where they are, and how to get one that is missing."""

import glob
import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass

from gpucnn.commands.check.part import Out
from gpucnn.commands.check.runner import end_group, environment

_FOLDERS = {
    "compute-sanitizer": ("compute-sanitizer", "extras/compute-sanitizer", "bin"),
    "ncu": ("bin", "nsight-compute-*"),
}
_NSIGHT = ("/opt/nvidia/nsight-compute/*/ncu", "/usr/local/NVIDIA-Nsight-Compute*/ncu")
GET = {
    "compute-sanitizer": "it is part of the CUDA toolkit: apt install cuda-sanitizer-13-0, or "
    "conda install -c nvidia cuda-sanitizer-api",
    "ncu": "it is part of the CUDA toolkit: apt install cuda-nsight-compute-13-0, or conda "
    "install -c nvidia nsight-compute",
}


@dataclass(frozen=True)
class Output:
    """What a command printed, until it ended or was ended."""

    text: str
    status: int | None  # None: ended at its limit


def find(tool: str) -> str | None:
    """The path of the tool: on PATH, in a toolkit, in a wheel of NVIDIA's."""
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
        for found in sorted(glob.glob(pattern), reverse=True):
            if os.access(found, os.X_OK):
                return str(found)
    return None


def find_or_skip(out: Out, tool: str) -> str | None:
    """The path, or a line that says how to get the tool."""
    path = find(tool)
    if path is None:
        out.skip(tool, "not installed", GET[tool])
    return path


def output(command: list[str], seconds: float, **env: str) -> Output:
    """Run a program of program.py, under a tool or not, for at most so long.

    Its text is both streams together.  With the command ends everything that it started.
    """
    with tempfile.TemporaryFile() as file:  # a pipe would stay open in what it started
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # held open: end_with_the_parent waits for its end
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
            end_group(process)
            if process.stdin is not None:
                process.stdin.close()
        file.seek(0)
        return Output(file.read().decode(errors="replace"), status)
