"""The convolutions' main loops as machine code: what they are made of, and how they use banks."""

from collections import Counter
from functools import cache

import numpy as np
import pytest

from gpucnn import cuda, cudasim, nvrtc, sass
from gpucnn.errors import DeviceError

# The least share of multiply-adds.  CUTLASS's kernels have 0.79, 0.77 and 0.65: kernel_mix.py.
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
    # Loads from global memory come at least 192 multiply-adds before their use: with 12 warps
    # on 4 schedulers that is 576 cycles, what memory takes to answer.
    assert loop.cover >= 192


def test_a_loop_is_read_out_of_the_listing() -> None:
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


PROBE = """
// What each thread of a 128 x 128 tile touches, in floats from the tile's start.
extern "C" __global__ void probe(int* loads, int* stores, int* rows) {
    __shared__ SharedTile<128, 128> tile;
    const float* start = &tile.a[0][0];
    int t = threadIdx.x;
    for (int k = 0; k < TILE_K; ++k) {
        int* to = loads + (t * TILE_K + k) * 4;
        to[0] = &tile.a[k][lane_row<128, 128>()] - start;
        to[1] = &tile.a[k][lane_row<128, 128>() + 16] - start;
        to[2] = &tile.b[k][lane_column<128, 128>()] - start;
        to[3] = &tile.b[k][lane_column<128, 128>() + 32] - start;
    }
    for (int i = 0; i < 4; ++i) stores[t * 4 + i] = &tile.a[t % 2 * 4 + i][t / 2] - start;
    rows[t] = &tile.b[t / 32][t % 32 * 4] - start;
}
"""


@pytest.mark.usefixtures("compiler")
def test_no_two_lanes_of_a_warp_want_the_same_bank_at_once() -> None:
    source = cuda.assemble("conv2d_forward.cu", cudasim.kernel_headers(), cudasim.kernel_folder())
    loads, stores, rows = (cudasim.empty(n, np.int32) for n in (256 * 32, 256 * 4, 256))
    module = cudasim.RawModule(code=source + PROBE)
    module.get_function("probe")((1,), (256,), (loads, stores, rows))
    assert worst_bank(loads.get().reshape(8, 32, 32), 4) == 1
    assert worst_bank(stores.get().reshape(8, 32, 4), 1) == 1
    assert worst_bank(rows.get().reshape(8, 32, 1), 4) == 1


def worst_bank(addresses: np.ndarray, floats: int) -> int:
    """The most different words that one access wants of one of the 32 banks.

    addresses is (warp, lane, access), of accesses of so many floats; 16-byte accesses are served
    a quarter of a warp at a time.
    """
    lanes = 32 // floats
    worst = 0
    for warp in addresses:
        for access in warp.T:
            for group in access.reshape(-1, lanes):
                words = {int(a) + i for a in group for i in range(floats)}
                worst = max(worst, *Counter(word % 32 for word in words).values())
    return worst


def test_a_tile_without_padding_would_have_conflicts() -> None:
    lanes = np.arange(32)
    unpadded = (lanes % 2 * 4 * 128 + lanes // 2).reshape(1, 32, 1)
    assert worst_bank(unpadded, 1) == 2
