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
    "conv2d_grad_weight_128x64": 0.82,
    "conv2d_forward_128x64_few": 0.70,
    "conv2d_forward_128x64_scalar": 0.70,
    "conv2d_grad_input_128x64_scalar": 0.70,
    "conv2d_grad_weight_32x64_vector": 0.68,
    "conv2d_grad_weight_32x64_scalar": 0.66,
}


@cache
def loops(file: str, arch: int) -> dict[str, sass.Loop]:
    try:
        return sass.main_loops(nvrtc.compile_source(cuda.assemble(file), file, arch).cubin)
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.slow
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


def test_stall_counts_are_decoded_from_the_upper_half_of_an_instruction() -> None:
    # Of an HMMA loop on sm_80: the HMMA waits 7 clocks, the next ones 1 and 8.
    lines = [("HMMA.16816.F32 R4, R132, R136, R4", 7), ("IADD3 R3, R3, 0x1, RZ", 1)]
    lines += [("@P0 BRA `(.L_x_1)", 8)]
    listing = ".L_x_1:\n" + "\n".join(
        f"        /*{16 * i:04x}*/                   {text} ;     /* 0x000000888404723c */\n"
        f"{' ' * 60}/* 0x{0x046FE00000001804 & ~(15 << 41) | stall << 41:016x} */"
        for i, (text, stall) in enumerate(lines)
    )
    loop = sass._main_loop(listing)
    assert loop.stalls == (7, 1, 8)
    assert loop.efficiency(80) == pytest.approx(8 / 16)
    assert loop.busy(90) == 6


@pytest.mark.parametrize(
    ("name", "clocks"),
    [
        ("FFMA", {75: 2, 80: 2, 86: 1, 90: 1}),
        ("HMMA.16816.F32", {80: 8, 86: 8, 90: 6, 120: 6}),
        ("HMMA.16816.F32.BF16", {80: 8}),
        ("HMMA.1688.F32.TF32", {80: 8, 90: 6}),
        ("HMMA.1688.F32", {75: 8, 80: 4}),
        ("IADD3", {80: 0}),
    ],
)
def test_clocks_of_a_multiply_add(name: str, clocks: dict[int, int]) -> None:
    assert {arch: sass._clocks(name, arch) for arch in clocks} == clocks
