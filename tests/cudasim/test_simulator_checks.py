"""Address mode and race mode: what they detect, their messages, and what they accept."""

import numpy as np
import pytest

from gpucnn import cuda, cudasim
from gpucnn.cuda import declarations as kernel_source
from gpucnn.errors import KernelError
from gpucnn.ops._kernels import Divisor
from gpucnn.ops.geometry import Geometry


def kernel(body: str, parameters: str = "float* x, float* y") -> str:
    return f'extern "C" __global__ void kernel({parameters}) {{ int t = threadIdx.x;\n{body}\n}}'


def floats(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float32)


@pytest.mark.parametrize("mode", ["address", "race"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y[t] = x[t + 1];", r"thread \(31, 0, 0\) reads 4 bytes at element 32 of x, which has 32 "
         "elements at kernels.cpp:2"),
        ("y[t] = x[t - 1];", r"thread \(0, 0, 0\) reads 4 bytes at element -1 of x"),
        ("y[t + 1] = 0;", "writes 4 bytes at element 32 of y"),
        ("float* p = t ? y : nullptr; *p = x[t];", "writes 4 bytes through a null pointer"),
        ("y[t] = x[t + (1 << 28)];", "reads 4 bytes at an address far from every argument"),
        ("atomicAdd(&y[t + 1], 1.0f);", "updates 4 bytes at element 32 of y"),
        ("((double*)y)[t / 2] = *(double*)(x + t);", "its type needs a multiple of 8 bytes"),
        ("__shared__ float tile[4][9];\ntile[t / 9][t % 9] = 0; y[t] = tile[t - t % 32][9];",
         "uses index 9, which is out of bounds, at kernels.cpp:3"),
        ("__shared__ float tile[31]; float* p = tile; p[t] = 0;",
         "writes 4 bytes at byte 124 of shared tile, which has 124"),
        ("extern __shared__ float more[]; more[t + 1] = 0;",
         "writes 4 bytes at byte 128 of the dynamic shared memory, which has 128"),
        ("int big = 2147483647; y[t] = big + t;", "overflows a signed integer by adding"),
        ("y[t] = 1 << (t + 1);", "shifts by too many bits"),
    ],
)  # fmt: skip
def test_an_access_outside_is_named_with_array_element_and_line(simulate, body, message, mode):
    with pytest.raises(KernelError, match=message):
        simulate(kernel(body), "kernel", 1, 32, floats(32), floats(32), mode=mode, shared=128)


def test_the_named_file_is_that_of_the_faulty_line(monkeypatch):
    """Even where a lambda calls a function of a header, as in pool2d.cu."""
    monkeypatch.setenv("GPUCNN_CUDASIM", "address")
    lines = (kernel_source.KERNELS / "vector.cuh").read_text().splitlines()
    written = lines.index("        *to = from_float<E>(v[0]);") + 1
    read = lines.index("        v[0] = to_float(*from);") + 1
    window = Geometry.of("test", (1, 8, 8, 3), 2, 2, 0)
    groups = Divisor.of(3), Divisor.of(4)
    for x_rows, y_rows, place in (
        (8, 2, rf"writes .* of y, which has 24 elements at vector\.cuh:{written}$"),
        (7, 4, rf"reads .* of x, which has 168 elements at vector\.cuh:{read}$"),
    ):
        x = cudasim.zeros((1, x_rows, 8, 3), np.float32)
        y = cudasim.empty((1, y_rows, 4, 3), np.float32)
        with pytest.raises(KernelError, match=place):
            cuda.launch("max_pool2d_forward", 1, 64, x, y, None, window, *groups)


@pytest.mark.parametrize(
    ("body", "place"), [("put(y, t);", r"inner\.cuh:3$"), ("y[t + 1] = 0;", r"mine\.cu:4$")]
)
def test_a_fault_in_a_header_names_the_header(simulate, body, place):
    code = (
        '#line 1 "/a/folder/mine.cu"\n\n#line 1 "/a/folder/inner.cuh"\n\n'
        "__device__ void put(float* p, int i) {\n    p[i + 1] = 0;\n}\n"
        f'#line 3 "/a/folder/mine.cu"\n{kernel(body)}'
    )
    with pytest.raises(KernelError, match=f"element 32 of y, which has 32 elements at {place}"):
        simulate(code, "kernel", 1, 32, floats(32), floats(32), mode="address")


def test_a_write_through_a_const_pointer_is_named(simulate):
    code = kernel("((float*)x)[t] = y[t];", "const float* x, float* y")
    with pytest.raises(KernelError, match="writes element 0 of x, which the kernel declares const"):
        simulate(code, "kernel", 1, 4, floats(4), floats(4), mode="address")


def test_an_access_from_one_view_of_a_buffer_into_the_next_is_detected(monkeypatch):
    monkeypatch.setenv("GPUCNN_CUDASIM", "address")
    buffer = cudasim.zeros(64, np.float32)
    function = cudasim.RawModule(code=kernel("y[t] = x[t + 1];")).get_function("kernel")
    with pytest.raises(KernelError, match="element 32 of x"):
        function((1,), (32,), (buffer[:32], buffer[32:]))
    function((1,), (31,), (buffer[:32], buffer[32:]))
    function((1,), (31,), (buffer, buffer))  # in place: one array under two names


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y[t] = x[t];", "reads element 0 of x = y, which nothing has written"),
        (
            "__shared__ float tile[32]; y[t] = tile[t];",
            "reads byte 0 of shared tile, which nothing",
        ),
        ("extern __shared__ float more[]; y[t] = more[t];", "reads byte 0 of the dynamic shared"),
    ],
)
def test_a_read_of_uninitialised_memory_is_detected(monkeypatch, body, message):
    monkeypatch.setenv("GPUCNN_CUDASIM", "address")
    function = cudasim.RawModule(code=kernel(body)).get_function("kernel")
    with pytest.raises(KernelError, match=message):
        function((1,), (32,), (cudasim.empty(32, np.float32),) * 2, shared_mem=128)


SHARED = "__shared__ float tile[64]; tile[t] = x[t]; {} y[t] = tile[t ^ {}];"


def test_barriers_order_and_shuffles_do_not(simulate):
    def run(body: str) -> None:
        simulate(kernel(body), "kernel", 1, 64, floats(64), floats(64), mode="race")

    run(SHARED.format("__syncthreads();", 63))
    run(SHARED.format("__syncwarp();", 31))
    run(SHARED.format("", 0))
    with pytest.raises(KernelError, match=r"at kernels\.cpp:2: nothing orders the two"):
        run(SHARED.format("__syncwarp();", 32))
    with pytest.raises(KernelError, match="nothing orders the two"):
        run(SHARED.format("__any_sync(~0u, 1);", 31))
    with pytest.raises(KernelError, match="nothing orders the two"):
        run(SHARED.format("__syncwarp(t % 32 < 16 ? 0x0000ffffu : 0xffff0000u);", 16))


def test_order_is_transitive_from_lane_to_lane(simulate):
    # Lane 0 synchronizes with 1, then 1 with 2: lane 2 may read what lane 0 wrote.
    body = """
        __shared__ float box;
        if (t == 0) { box = 1.0f; __syncwarp(3u); }
        if (t == 1) { __syncwarp(3u); __syncwarp(6u); }
        if (t == 2) { __syncwarp(6u); y[0] = box; }"""
    simulate(kernel(body), "kernel", 1, 3, floats(3), floats(3), mode="race")


def test_threads_may_write_different_bytes_of_one_word(simulate):
    code = kernel("b[t] = t; __syncthreads(); b[t ^ 1] = t;", "unsigned char* b")
    simulate(code, "kernel", 1, 64, np.zeros(64, np.uint8), mode="race")
    with pytest.raises(KernelError, match="writes element 1 of b"):
        simulate(
            code.replace("__syncthreads();", ""),
            "kernel",
            1,
            64,
            np.zeros(64, np.uint8),
            mode="race",
        )


def test_nothing_orders_two_blocks(simulate):
    with pytest.raises(KernelError, match=r"which thread \(0, 0, 0\) of another block wrote"):
        simulate(kernel("y[t] = x[t];"), "kernel", 2, 32, floats(32), floats(32), mode="race")
    with pytest.raises(KernelError, match=r"of another block read"):
        simulate(kernel("if (blockIdx.x) y[0] = 1; else x[0] = y[0];"), "kernel", 2, 1, floats(1),
                 floats(1), mode="race")  # fmt: skip
    simulate(kernel("atomicAdd(y, x[t]);"), "kernel", 2, 32, floats(32), floats(32), mode="race")


def test_constant_tables_and_local_arrays_may_be_read(simulate):
    code = "__constant__ float table[4] = {1, 2, 3, 4};\n" + kernel(
        "float local[4]; for (int i = 0; i < 4; ++i) local[(i + t) % 4] = table[i];\n"
        "y[t] = local[int(x[0])];"
    )
    y = np.zeros(4, np.float32)
    for mode in ("address", "race"):
        simulate(code, "kernel", 1, 4, np.zeros(1, np.float32), y, mode=mode)
        assert y.tolist() == [1, 4, 3, 2]
