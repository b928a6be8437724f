"""NVIDIA's command-line tools: where they are, and how to get one that is missing."""

import glob
import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass

from gpucnn.check.part import Out
from gpucnn.check.runner import environment

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
    """Run a command for at most so long; what it printed, both streams together."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(**env),
    )
    try:
        text, _ = process.communicate(timeout=max(seconds, 1))
        return Output(text, process.returncode)
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        return Output(text, None)
