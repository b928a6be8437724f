"""Machine code (SASS): the instruction mix of a kernel's main loop, and how densely it issues.

Disassembles cubins with NVIDIA's nvdisasm, from the wheel nvidia-cuda-nvdisasm or a toolkit; no GPU
is needed.

From sm_70 on an instruction has 128 bits.  Bits 105 to 108 are its stall count, which the assembler
computes: the clocks that a warp waits before it issues its next instruction.  Their sum is the
least time that one warp takes for an iteration, when no load is late.
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
_STALL_BIT = 105 - 64  # in the upper half
_INTEGER = (
    "IADD IADD3 IMAD IMNMX VIADD VIMNMX ISETP LEA LOP3 SHF SHL SHR SEL IABS PLOP3 PRMT "
    "UIADD3 UIMAD UISETP ULEA ULOP3 USHF USEL UPLOP3 ULDC UMOV S2UR R2UR"
).split()


@dataclass(frozen=True)
class Loop:
    """The instructions of one iteration of a loop."""

    instructions: tuple[str, ...]  # mnemonics with suffixes: "LDS.128"
    stalls: tuple[int, ...] = ()  # of each instruction, in clocks

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

    def busy(self, architecture: int) -> int:
        """The clocks for which one warp's multiply-adds occupy its quarter of a multiprocessor."""
        return sum(_clocks(name, architecture) for name in self.instructions)

    def efficiency(self, architecture: int) -> float:
        """`busy` by the sum of the stall counts: the fraction of peak that one warp can reach.

        Two warps in each quarter hide what is missing, as long as it is less than half.
        """
        return self.busy(architecture) / max(sum(self.stalls), 1)

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


def _clocks(name: str, architecture: int) -> int:
    """The clocks for which a multiply-add of a warp occupies a quarter of a multiprocessor.

    From the multiply-adds a clock and multiprocessor: of sm_75 512 (float16); of sm_80 1024
    (float16 and bfloat16), 512 (TF32) and 64 (float32); of sm_90 with mma.sync about 1365, 683 and
    128.  Other architectures are taken for the last one before them.
    """
    if name.startswith("FFMA"):
        return 2 if architecture in (75, 80) else 1
    if not name.startswith("HMMA"):
        return 0
    per_8 = 4 if architecture >= 80 else 8  # of a 16 x 8 x 8 product of 16-bit numbers
    if architecture >= 90:
        per_8 = 3
    return 2 * per_8 if "16816" in name or "TF32" in name else per_8


def main_loops(cubin: bytes) -> dict[str, Loop]:
    """The loop with the most multiply-adds of each kernel; DeviceError without nvdisasm."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        listing = subprocess.run(
            [_nvdisasm(), "-c", "-hex", str(path)], capture_output=True, text=True, check=True
        ).stdout
    parts = re.split(r"^\.text\.(\w+):$", listing, flags=re.MULTILINE)
    return {name: _main_loop(code) for name, code in zip(parts[1::2], parts[2::2], strict=True)}


def _main_loop(code: str) -> Loop:
    instructions: list[str] = []
    stalls: list[int] = []
    labels: dict[str, int] = {}  # index of the instruction after the label
    loops: list[tuple[int, int]] = []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(
            r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", line
        ):
            instructions.append(found[1])
            target = re.search(r"`\((\.L\w+)\)", found[2])
            if found[1].startswith("BRA") and target and target[1] in labels:
                loops.append((labels[target[1]], len(instructions)))
        elif upper := re.fullmatch(r"\s*/\* 0x([0-9a-f]{16}) \*/\s*", line):
            stalls.append(int(upper[1], 16) >> _STALL_BIT & 15)
    found_loops = [Loop(tuple(instructions[a:b]), tuple(stalls[a:b])) for a, b in loops]
    return max(found_loops, key=lambda loop: loop.multiply_adds, default=Loop(()))


@functools.cache
def _nvdisasm() -> str:
    # cuda.pathfinder searches wheels, conda and CUDA_PATH, but not PATH.
    find = pathfinder("nvdisasm").find_nvidia_binary_utility
    path = find("nvdisasm") or shutil.which("nvdisasm")
    if path is None:
        raise DeviceError(f"nvdisasm was not found; {INSTALL}")
    return str(path)
