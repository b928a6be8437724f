"""Machine code (SASS): the instruction mix of a kernel's main loop.

Disassembles cubins with NVIDIA's nvdisasm, from the wheel nvidia-cuda-nvdisasm or a toolkit; no GPU
is needed.
"""

import functools
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gpucnn.cuda.nvrtc import INSTALL, pathfinder
from gpucnn.errors import DeviceError

_MULTIPLY_ADDS = ("FFMA", "HMMA", "QGMMA", "HGMMA")
_INTEGER = (
    "IADD IADD3 IMAD IMNMX VIADD VIMNMX ISETP LEA LOP3 SHF SHL SHR SEL IABS PLOP3 PRMT "
    "UIADD3 UIMAD UISETP ULEA ULOP3 USHF USEL UPLOP3 ULDC UMOV S2UR R2UR"
).split()


@dataclass(frozen=True)
class Loop:
    """The instructions of one iteration of a loop."""

    instructions: tuple[str, ...]  # mnemonics with suffixes: "LDS.128"

    def count(self, *names: str) -> int:
        """The number of instructions whose mnemonic is one of `names`, with or without suffixes."""
        return sum(
            any(i == name or i.startswith(name + ".") for name in names) for i in self.instructions
        )

    @property
    def multiply_adds(self) -> int:
        return self.count(*_MULTIPLY_ADDS)

    @property
    def share(self) -> float:
        """The fraction of instructions that are multiply-adds."""
        return self.multiply_adds / max(len(self.instructions), 1)

    @property
    def integer(self) -> int:
        """The number of instructions for addresses, bounds and counters."""
        return self.count(*_INTEGER)

    @property
    def cover(self) -> int:
        """The number of multiply-adds that hide the latency of global memory: those between the
        last global load and the next store to shared memory; 0 without such a pair."""
        loads = [i for i, name in enumerate(self.instructions) if name.startswith("LDG")]
        stores = [i for i, name in enumerate(self.instructions) if name.startswith("STS")]
        after = [i for i in stores if loads and i > loads[-1]]
        if not after:
            return 0
        return Loop(self.instructions[loads[-1] : after[0]]).multiply_adds


def main_loops(cubin: bytes) -> dict[str, Loop]:
    """The loop with the most multiply-adds of each kernel; DeviceError without nvdisasm."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        listing = subprocess.run(
            [_nvdisasm(), "-c", str(path)], capture_output=True, text=True, check=True
        ).stdout
    parts = re.split(r"^\.text\.(\w+):$", listing, flags=re.MULTILINE)
    return {name: _main_loop(code) for name, code in zip(parts[1::2], parts[2::2], strict=True)}


def _main_loop(code: str) -> Loop:
    instructions: list[str] = []
    labels: dict[str, int] = {}  # index of the instruction after the label
    best = Loop(())
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(
            r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", line
        ):
            instructions.append(found[1])
            target = re.search(r"`\((\.L\w+)\)", found[2])
            if found[1].startswith("BRA") and target and target[1] in labels:
                loop = Loop(tuple(instructions[labels[target[1]] :]))
                if loop.multiply_adds > best.multiply_adds:
                    best = loop
    return best


@functools.cache
def _nvdisasm() -> str:
    # cuda.pathfinder searches wheels, conda and CUDA_PATH, but not PATH.
    find = pathfinder("nvdisasm").find_nvidia_binary_utility
    path = find("nvdisasm") or shutil.which("nvdisasm")
    if path is None:
        raise DeviceError(f"nvdisasm was not found; {INSTALL}")
    return str(path)
