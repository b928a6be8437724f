"""Every kernel as machine code: it compiles, nothing spills, and its launch bounds hold."""

import re
from functools import cache

import pytest

from gpucnn import cuda
from gpucnn.cuda import Define, nvrtc
from gpucnn.cuda.specialisations import Defines, specialisations
from gpucnn.cuda.tensor_plan import PRODUCTS
from gpucnn.errors import DeviceError
from gpucnn.integers import ceil_div

# Threads and bytes of shared memory per multiprocessor, by compute capability.  Source: CUDA C++
# Programming Guide, table of technical specifications per compute capability.
MULTIPROCESSOR = {
    75: (1024, 64 << 10),
    80: (2048, 164 << 10),
    86: (1536, 100 << 10),
    89: (1536, 100 << 10),
    90: (2048, 228 << 10),
    100: (2048, 228 << 10),
    120: (1536, 100 << 10),
}
REGISTERS = 65536  # per multiprocessor, on every architecture above
# Those on tensor cores have as many sets of launch bounds as tiles: test_tensor_specialisations.py.
FILES = sorted({kernel.file for kernel in cuda.kernels().values()} - set(PRODUCTS))
ARCHITECTURES = [
    pytest.param(arch, marks=[] if arch in (80, 90) else pytest.mark.slow)
    for arch in MULTIPROCESSOR
]


@cache
def compiled(file: str, arch: int, defines: tuple[tuple[str, Define], ...] = ()) -> nvrtc.Binary:
    try:
        known = nvrtc.architectures()
    except DeviceError as error:
        pytest.skip(str(error))
    if arch not in known:
        pytest.skip(f"NVRTC {nvrtc.version()} does not know sm_{arch}")
    options = (*cuda.options(defines), *nvrtc.CUPY_OPTIONS)
    return nvrtc.compile_source(cuda.assemble(file), file, arch, options)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_every_kernel_of_the_file_compiles_and_none_spills(file: str, arch: int) -> None:
    usage = compiled(file, arch).usage
    assert set(usage) == {k.name for k in cuda.kernels().values() if k.file == file}
    assert {name: (u.spilled, u.stack) for name, u in usage.items()} == dict.fromkeys(usage, (0, 0))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_as_many_blocks_share_a_multiprocessor_as_the_launch_bounds_say(
    file: str, arch: int
) -> None:
    stated, usage = launch_bounds(file), compiled(file, arch).usage

    def fits(name: str) -> int:
        return blocks_that_fit(usage[name], stated[name][0], arch)

    assert {name: fits(name) >= stated[name][1] for name in stated} == (dict.fromkeys(stated, True))


@pytest.mark.parametrize("file", FILES)
def test_the_comment_at_the_top_states_the_registers_and_warps_that_the_launch_bounds_give(
    file: str,
) -> None:
    header = cuda.assemble(file).split("#include")[0]
    text = " ".join(header.replace("//", "").split())
    for name, (threads, blocks) in launch_bounds(file).items():
        most = REGISTERS // (threads * blocks) // 8 * 8  # allocated in units of 8
        stated = rf"at most {most} registers (a thread|each): {threads * blocks // 32} warps"
        assert re.search(stated, text), f"{name}: {stated}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_no_kernel_takes_more_registers_than_its_launch_bounds_leave(file: str, arch: int) -> None:
    bounds = launch_bounds(file)
    most = {name: REGISTERS // (t * blocks) // 8 * 8 for name, (t, blocks) in bounds.items()}
    used = {name: usage.registers for name, usage in compiled(file, arch).usage.items()}
    assert {name: n for name, n in used.items() if n > most[name]} == {}


@pytest.mark.slow
@pytest.mark.parametrize("arch", [75, 90])  # without and with asynchronous copies
@pytest.mark.parametrize(
    ("file", "defines"),
    [s for s in specialisations() if s[1]],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_no_specialisation_spills_or_exceeds_its_launch_bounds(
    file: str, defines: Defines, arch: int
) -> None:
    binary = compiled(file, arch, tuple(defines.items()))
    found = {name: (u.spilled, u.stack) for name, u in binary.usage.items()}
    assert found == dict.fromkeys(found, (0, 0))
    stated = launch_bounds(file)
    fits = {name: blocks_that_fit(binary.usage[name], stated[name][0], arch) for name in stated}
    assert {name for name, blocks in fits.items() if blocks < stated[name][1]} == set()


def launch_bounds(file: str) -> dict[str, tuple[int, int]]:
    """Threads per block and blocks per multiprocessor in the source's __launch_bounds__."""
    found = re.findall(
        r"__launch_bounds__\((\d+), (\d+)\)[\w\s]*?\bvoid (\w+)\(", cuda.assemble(file)
    )
    bounds = {name: (int(threads), int(blocks)) for threads, blocks, name in found}
    assert set(bounds) == {k.name for k in cuda.kernels().values() if k.file == file}
    return bounds


def blocks_that_fit(usage: nvrtc.Usage, threads: int, arch: int) -> int:
    most_threads, shared = MULTIPROCESSOR[arch]
    warps = threads // 32
    registers = (
        ceil_div(usage.registers, 8) * 8 * 32 * warps
    )  # allocated to a warp, 8 per thread at a time
    reserved = 0 if arch < 80 else 1024  # by CUDA, for every block
    limits = [most_threads // threads, REGISTERS // registers]
    if usage.shared:
        limits.append(shared // (usage.shared + reserved))
    return min(limits)
