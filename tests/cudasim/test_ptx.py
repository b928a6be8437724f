"""Tensor-core instructions, ldmatrix and asynchronous copies compared with NumPy."""

import re
from pathlib import Path

import numpy as np
import pytest

from gpucnn import cudasim
from gpucnn.cuda.declarations import KERNELS
from gpucnn.errors import KernelError

PTX = '#include "ptx.h"\n'
LANES = np.arange(32)
G, T = LANES // 4, LANES % 4  # the PTX ISA's groupID and threadID_in_group


def signatures(text: str) -> set[str]:
    text = re.sub(r",\s*CUDASIM_HERE", "", re.sub(r"//[^\n]*", "", text))
    found = re.findall(r"(?m)^(?:template <[^>]*>\s*)?__device__ inline [^{]*", text)
    return {" ".join(signature.split()) for signature in found}


def test_the_simulator_has_every_function_of_ptx_cuh_with_the_same_arguments():
    gpu = (KERNELS / "ptx.cuh").read_text()
    cpu = (Path(cudasim.__file__).parent / "native" / "ptx.h").read_text()
    assert signatures(gpu) == signatures(cpu)
    assert len(signatures(gpu)) > 15


def round_to_tf32(x: np.ndarray) -> np.ndarray:
    """float32 to 10 bits of mantissa, ties away from zero, in float64 arithmetic."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    scaled = mantissa * 2.0**11
    return np.ldexp(np.sign(scaled) * np.floor(np.abs(scaled) + 0.5) / 2.0**11, exponent)


def to_bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """float32 to the nearest bfloat16, ties to even."""
    candidates = (x.view(np.uint32) >> 16)[..., None] + np.array([0, 1], np.uint32)
    values = (candidates << 16).astype(np.uint32).view(np.float32).astype(np.float64)
    away = np.abs(values - x[..., None].astype(np.float64))
    tie = away[..., 0] == away[..., 1]
    pick = np.where(tie, candidates[..., 0] % 2, away.argmin(-1))
    return np.take_along_axis(candidates, pick[..., None].astype(int), -1)[..., 0].astype(np.uint16)


def packed(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | high.astype(np.uint32) << 16


def fragments(
    matrix_a: np.ndarray, matrix_b: np.ndarray, per_register: int
) -> tuple[np.ndarray, ...]:
    """Registers a (32, R), b (32, R/2) of bit patterns A (16, K), B (K, 8): the ISA's tables."""
    k_total = matrix_a.shape[1]
    a, b = [], []
    for k in range(0, k_total, 4 * per_register):
        if per_register == 1:
            a += [matrix_a[G, k + T], matrix_a[G + 8, k + T]]
            b += [matrix_b[k + T, G]]
        else:
            even, odd = k + 2 * T, k + 2 * T + 1
            a += [packed(matrix_a[row, even], matrix_a[row, odd]) for row in (G, G + 8)]
            b += [packed(matrix_b[even, G], matrix_b[odd, G])]
    return np.stack(a, 1).astype(np.uint32), np.stack(b, 1).astype(np.uint32)


@pytest.mark.parametrize("mode", ["fast", "fast,schedule=random:1", "address", "race"])
@pytest.mark.parametrize(
    ("function", "k"),
    [
        ("multiply_tf32", 8),
        ("multiply_half", 8),
        ("multiply_half", 16),
        ("multiply_bfloat16", 8),
        ("multiply_bfloat16", 16),
    ],
)
def test_mma_multiplies_two_matrices_laid_out_as_the_isa_says(simulate, function, k, mode):
    rng = np.random.default_rng(k)
    left, right, c = (rng.standard_normal(s).astype(np.float32) for s in ((16, k), (k, 8), (16, 8)))
    if function == "multiply_tf32":
        bits_a, bits_b = left.view(np.uint32), right.view(np.uint32)
        exact = [(x.view(np.uint32) & ~np.uint32(0x1FFF)).view(np.float32) for x in (left, right)]
    elif function == "multiply_half":
        bits_a, bits_b = (x.astype(np.float16).view(np.uint16) for x in (left, right))
        exact = [x.astype(np.float16) for x in (left, right)]
    else:
        bits_a, bits_b = map(to_bfloat16_bits, (left, right))
        exact = [(b.astype(np.uint32) << 16).view(np.float32) for b in (bits_a, bits_b)]
    a, b = fragments(bits_a, bits_b, 1 if function == "multiply_tf32" else 2)
    d = np.stack([c[G, 2 * T], c[G, 2 * T + 1], c[G + 8, 2 * T], c[G + 8, 2 * T + 1]], 1)
    d = np.ascontiguousarray(d)
    regs_a, regs_b = a.shape[1], b.shape[1]
    pass_b = "b" if regs_b > 1 else "b[0]"
    code = f"""{PTX}
    extern "C" __global__ void kernel(const unsigned* a_in, const unsigned* b_in, float* d_out) {{
        unsigned a[{regs_a}], b[{regs_b}];
        float d[4];
        for (int i = 0; i < {regs_a}; ++i) a[i] = a_in[threadIdx.x * {regs_a} + i];
        for (int i = 0; i < {regs_b}; ++i) b[i] = b_in[threadIdx.x * {regs_b} + i];
        for (int i = 0; i < 4; ++i) d[i] = d_out[threadIdx.x * 4 + i];
        {function}(d, a, {pass_b});
        for (int i = 0; i < 4; ++i) d_out[threadIdx.x * 4 + i] = d[i];
    }}"""
    simulate(code, "kernel", 1, 32, a, b, d, mode=mode)
    expected = c + exact[0].astype(np.float64) @ exact[1].astype(np.float64)
    result = np.empty((16, 8), np.float32)
    result[G, 2 * T], result[G, 2 * T + 1], result[G + 8, 2 * T], result[G + 8, 2 * T + 1] = d.T
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mode", ["fast", "address", "race"])
def test_ldmatrix_distributes_rows_as_the_isa_says(simulate, count, transposed, mode):
    matrices = np.random.default_rng(count).integers(0, 2**16, (count, 8, 8)).astype(np.uint16)
    result = np.zeros((32, count), np.uint32)
    name = "load_matrices_transposed" if transposed else "load_matrices"
    code = f"""{PTX}
    extern "C" __global__ void kernel(const unsigned short* x, unsigned* y) {{
        __shared__ __align__(16) unsigned short tile[{count * 8}][24];  // rows 48 bytes apart
        for (int i = threadIdx.x; i < {count * 64}; i += 32) tile[i / 8][i % 8] = x[i];
        __syncthreads();
        unsigned r[{count}];
        {name}(r, tile[threadIdx.x % {count * 8}]);
        for (int i = 0; i < {count}; ++i) y[threadIdx.x * {count} + i] = r[i];
    }}"""
    simulate(code, "kernel", 1, 32, matrices.reshape(-1), result, mode=mode)
    wanted = matrices.transpose(0, 2, 1) if transposed else matrices
    np.testing.assert_array_equal(result, packed(wanted[:, G, 2 * T], wanted[:, G, 2 * T + 1]).T)


def test_half_conversions_are_exact_and_round_to_even(simulate):
    every = np.arange(2**16, dtype=np.uint16)
    rng = np.random.default_rng(0)
    edges = [0.0, -0.0, 65504, 65519.996, 65520, np.inf, -np.inf, 2.0**-24, 2.0**-25]
    ties = [2.0**-25 * 1.001, 1 + 2.0**-11, 1 + 3 * 2.0**-11]
    spread = rng.standard_normal(4000) * 10.0 ** rng.uniform(-9, 6, 4000)
    x = np.concatenate([spread, edges, ties]).astype(np.float32)
    up, down = np.empty(2**16, np.float32), np.empty(x.size, np.uint16)
    code = f"""{PTX}
    extern "C" __global__ void widen(const half* x, float* y) {{
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        y[i] = to_float(x[i]);
    }}
    extern "C" __global__ void narrow(const float* x, half* y, int n) {{
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) y[i] = to_half(x[i]);
    }}"""
    simulate(code, "widen", 64, 1024, every, up)
    np.testing.assert_array_equal(up, every.view(np.float16).astype(np.float32))
    simulate(code, "narrow", 4, 1024, x, down, np.int32(x.size))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(down, x.astype(np.float16).view(np.uint16))


def test_bfloat16_and_tf32_round_to_nearest(simulate):
    rng = np.random.default_rng(1)
    x = np.concatenate(
        [rng.standard_normal(4000), [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11]]
    ).astype(np.float32)
    narrow, tf32 = np.empty(x.size, np.uint16), np.empty(x.size, np.float32)
    code = f"""{PTX}
    extern "C" __global__ void kernel(const float* x, bfloat16* y, float* z, int n) {{
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) {{ y[i] = to_bfloat16(x[i]); z[i] = __uint_as_float(to_tf32(x[i])); }}
    }}"""
    simulate(code, "kernel", 16, 256, x, narrow, tf32, np.int32(x.size))
    np.testing.assert_array_equal(narrow, to_bfloat16_bits(x))
    np.testing.assert_array_equal(tf32, round_to_tf32(x))


COPY = (
    PTX
    + """
extern "C" __global__ void kernel(const float* x, float* y) {
    extern __shared__ float tile[];
    int t = threadIdx.x;
    copy_async<16>(tile + 4 * t, x + 4 * t, t == 3 ? 8 : 16);
    copy_async_commit();
    copy_async<4>(tile + 128 + t, x + 128 + t);
    copy_async_commit();
    WAIT
    __syncthreads();
    for (int i = t; i < 160; i += 32) y[i] = tile[(i + 4) % 160];
}"""
)


@pytest.mark.parametrize("mode", ["fast", "fast,schedule=highest", "address", "race"])
def test_an_asynchronous_copy_is_complete_after_its_wait(simulate, mode):
    x, y = np.arange(1, 161, dtype=np.float32), np.zeros(160, np.float32)
    simulate(
        COPY.replace("WAIT", "copy_async_wait<0>();"), "kernel", 1, 32, x, y, mode=mode, shared=640
    )
    x[14:16] = 0  # beyond from_bytes: zeros
    np.testing.assert_array_equal(y, np.roll(x, -4))


def test_an_asynchronous_copy_is_not_complete_before_its_wait(simulate):
    x, y = np.arange(1, 161, dtype=np.float32), np.zeros(160, np.float32)
    simulate(COPY.replace("WAIT", "copy_async_wait<1>();"), "kernel", 1, 32, x, y, shared=640)
    assert np.isnan(y[124:156]).all()  # the second group
    assert not np.isnan(y[:124]).any()
    with pytest.raises(KernelError, match="asynchronous copy is in flight"):
        simulate(
            COPY.replace("WAIT", "copy_async_wait<1>();"),
            "kernel",
            1,
            32,
            x,
            y,
            shared=640,
            mode="race",
        )


def test_copies_without_a_wait_do_not_affect_the_next_launch(simulate):
    x, y = np.arange(1, 161, dtype=np.float32), np.zeros(160, np.float32)
    with pytest.raises(KernelError, match="is in flight"):
        simulate(COPY.replace("WAIT", ""), "kernel", 1, 32, x, y, shared=640, mode="race")
    code = COPY.replace("WAIT", "copy_async_wait<0>();")
    simulate(code, "kernel", 2, 32, x, np.zeros(160, np.float32), shared=640)
    simulate(code, "kernel", 1, 32, x, y, shared=640, mode="race")


def test_a_copy_needs_both_addresses_aligned(simulate):
    x, y = np.zeros(200, np.float32), np.zeros(160, np.float32)
    code = COPY.replace("x + 4 * t,", "x + 4 * t + 1,").replace("WAIT", "")
    with pytest.raises(KernelError, match="multiples of 16 bytes"):
        simulate(code, "kernel", 1, 32, x, y, shared=640)


def test_mma_needs_all_lanes(simulate):
    code = (
        PTX
        + """
    extern "C" __global__ void kernel(float* y) {
        unsigned a[4] = {}, b[2] = {};
        float d[4] = {};
        if (threadIdx.x == 5) return;
        multiply_tf32(d, a, b);
        y[threadIdx.x] = d[0];
    }"""
    )
    with pytest.raises(
        KernelError, match=r"thread \(5, 0, 0\), which the mask names, has returned"
    ):
        simulate(code, "kernel", 1, 32, np.zeros(32, np.float32))
    with pytest.raises(KernelError, match="lane 20 of its warp does not"):
        simulate(code.replace("== 5", "== 99"), "kernel", 1, 20, np.zeros(32, np.float32))
