"""The kernels on tensor cores as machine code: registers, spills, and how densely they multiply."""

import pytest

from gpucnn import cuda
from gpucnn.cuda import nvrtc, sass
from gpucnn.cuda.tensor_plan import PRODUCTS, Specialisation, specialisations
from gpucnn.errors import DeviceError

ARCHITECTURES = (75, 80, 90, 120)
ALIKE = (86, 89, 100, 121)  # each has the registers, and nearly the instructions, of one of these
LARGEST = ("half", 4, "128x128")  # of 16 bits; it leaves the fewest registers
# The lowest share of HMMA instructions, and efficiency of one warp, of 128 x 128 tiles on sm_80.
MIX = {
    ("half", "NT"): (0.45, 0.95),
    ("half", "NN"): (0.45, 0.95),
    ("half", "TN"): (0.45, 0.95),
    ("tf32", "NT"): (0.45, 0.95),
    ("tf32", "NN"): (0.40, 0.95),
    ("tf32", "TN"): (0.40, 0.95),
}


def compiled(case: Specialisation, arch: int) -> nvrtc.Binary:
    options = ("-std=c++17", *nvrtc.CUPY_OPTIONS, *case.options)
    try:
        known = nvrtc.architectures()
        if arch not in known:
            pytest.skip(f"NVRTC {nvrtc.version()} does not know sm_{arch}")
        return nvrtc.compile_source(cuda.assemble(case.file), case.file, arch, options)
    except DeviceError as error:
        pytest.skip(str(error))


def check_resources(case: Specialisation, arch: int) -> None:
    """No spills, and as many blocks fit on a multiprocessor as the plan expects."""
    (usage,) = compiled(case, arch).usage.values()
    assert (usage.spilled, usage.stack) == (0, 0), case.title
    registers = -(-usage.registers // 8) * 8 * case.tile.threads
    assert 65536 // registers >= case.tile.resident, case.title


@pytest.mark.parametrize("file", PRODUCTS)
def test_the_largest_tile_does_not_spill(file: str) -> None:
    check_resources(next(case for case in specialisations((file,)) if case.exists_on(80)), 80)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES + ALIKE)
@pytest.mark.parametrize("file", PRODUCTS)
def test_no_specialisation_spills(file: str, arch: int) -> None:
    for case in specialisations((file,)):
        sampled = arch not in ALIKE or (case.element, case.stages, str(case.tile)) == LARGEST
        if sampled and case.exists_on(arch) and case.element != "bfloat16":  # the same code as half
            check_resources(case, arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(("element", "form"), MIX)
def test_the_gemms_main_loop_is_dense_enough_to_keep_the_tensor_cores_busy(
    element: str, form: str, arch: int
) -> None:
    case = next(
        case
        for case in specialisations(("gemm_tensor.cu",))
        if (case.element, str(case.tile)) == (element, "128x128")
        and case.exists_on(arch)
        and form in case.title.split()
    )
    try:
        loop = sass.main_loops(compiled(case, arch).cubin)["gemm_tensor"]
    except DeviceError as error:
        pytest.skip(str(error))
    share, efficiency = MIX[element, form]
    assert loop.multiply_adds == 64
    assert loop.share >= share - (0.01 if arch == 90 else 0)
    assert loop.efficiency(arch) >= efficiency
