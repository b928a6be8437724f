"""The convolutions' main loops as machine code: their instruction mix."""

from functools import cache

import pytest

from gpucnn import cuda
from gpucnn.cuda import nvrtc, sass
from gpucnn.errors import DeviceError

# The lowest share of multiply-adds allowed.  CUTLASS reaches 0.79, 0.78 and 0.66 at best:
# benchmarks/kernel_mix.py.
SHARES = {
    "conv2d_forward_128x128_vector": 0.80,
    "conv2d_forward_128x64_vector": 0.80,
    "conv2d_grad_input_128x128_vector": 0.78,
    "conv2d_grad_input_128x64_vector": 0.78,
    "conv2d_grad_weight_128x64_vector": 0.68,
    "conv2d_forward_128x64_few": 0.70,
    "conv2d_forward_128x64_scalar": 0.70,
    "conv2d_grad_input_128x64_scalar": 0.70,
    "conv2d_grad_weight_128x64_scalar": 0.68,
}


@cache
def loops(file: str, arch: int) -> dict[str, sass.Loop]:
    try:
        return sass.main_loops(nvrtc.compile_source(cuda.assemble(file), file, arch).cubin)
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("kernel", SHARES)
def test_the_main_loop_multiplies_and_reads_16_bytes_and_loads_early(
    kernel: str, arch: int
) -> None:
    loop = loops(cuda.kernel(kernel).file, arch)[kernel]
    assert loop.multiply_adds == 512
    assert loop.share >= SHARES[kernel]
    assert loop.count("LDS.128") >= 32
    # Loads from global memory are issued at least 192 multiply-adds before their use: with 12 warps
    # on 4 schedulers these take 576 cycles, the latency of global memory.
    assert loop.cover >= 192


def test_the_main_loop_is_parsed_from_the_listing() -> None:
    listing = """
.L_x_0:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/              @!P0 LDG.E.128 R4, [R2.64] ;
        /*0020*/                   FFMA R0, R1, R2, R0 ;
        /*0030*/                   FFMA R0, R1, R2, R0 ;
        /*0040*/                   STS.128 [R3], R4 ;
        /*0050*/                   IADD3 R3, R3, 0x1, RZ ;
        /*0060*/               @P0 BRA `(.L_x_1) ;
        /*0070*/                   EXIT ;
        /*0080*/                   BRA `(.L_x_2);
.L_x_2:
"""
    loop = sass._main_loop(listing)
    assert loop.instructions == ("LDG.E.128", "FFMA", "FFMA", "STS.128", "IADD3", "BRA")
    assert (loop.multiply_adds, loop.integer, loop.cover) == (2, 1, 2)
    assert loop.share == pytest.approx(1 / 3)
