"""The main loops of the convolutions on tensor cores as machine code: how densely they multiply."""

import pytest

from gpucnn import cuda
from gpucnn.cuda import nvrtc, sass
from gpucnn.cuda.tensor_plan import TILES, specialisations
from gpucnn.errors import DeviceError

# The lowest share of HMMA instructions in loops of 128 x 128 tiles.  CUTLASS's have 0.33 and 0.33
# in half precision, 0.32 and 0.29 in TF32: benchmarks/kernel_mix.py.
SHARES = {
    ("conv2d_forward_tensor", "half"): 0.41,
    ("conv2d_forward_tensor", "bfloat16"): 0.41,
    ("conv2d_forward_tensor", "tf32"): 0.41,
    ("conv2d_grad_input_tensor", "half"): 0.41,
    ("conv2d_grad_input_tensor", "bfloat16"): 0.41,
    ("conv2d_grad_input_tensor", "tf32"): 0.36,
}


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(("kernel", "element"), SHARES)
def test_the_main_loop_keeps_the_tensor_cores_busy(kernel: str, element: str, arch: int) -> None:
    case = next(
        case
        for case in specialisations((f"{kernel}.cu",))
        if (case.element, case.tile) == (element, TILES[0]) and case.exists_on(arch)
    )
    options = ("-std=c++17", *nvrtc.CUPY_OPTIONS, *case.options)
    try:
        binary = nvrtc.compile_source(cuda.assemble(case.file), case.file, arch, options)
        loop = sass.main_loops(binary.cubin)[kernel]
    except DeviceError as error:
        pytest.skip(str(error))
    assert loop.multiply_adds == 64
    assert loop.share >= SHARES[kernel, element]
    assert loop.efficiency(arch) >= 0.95
    assert loop.count("LDGSTS") == 8  # 16 bytes each
