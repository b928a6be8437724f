"""The compiler without a GPU: what it says of good and bad sources, and without its library."""

import pytest

from gpucnn.cuda import nvrtc
from gpucnn.errors import DeviceError, KernelError

GOOD = 'extern "C" __global__ void good(float* x) { x[threadIdx.x] *= 2.0f; }'


@pytest.fixture
def library() -> None:
    try:
        nvrtc.version()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("library")
def test_a_source_becomes_machine_code_with_its_figures() -> None:
    binary = nvrtc.compile_source(GOOD, "good.cu", 80)
    assert binary.cubin.startswith(b"\x7fELF")
    assert ".entry good" in binary.ptx
    usage = binary.usage["good"]
    assert 4 <= usage.registers <= 32
    assert (usage.shared, usage.spilled, usage.stack) == (0, 0, 0)


@pytest.mark.usefixtures("library")
def test_a_spill_is_seen() -> None:
    source = """
    extern "C" __global__ __launch_bounds__(1024) void hungry(const float* x, float* y) {
        float kept[200], sum = 0.0f;
    #pragma unroll
        for (int i = 0; i < 200; ++i) kept[i] = x[i * 1024 + threadIdx.x];
        __syncthreads();
    #pragma unroll
        for (int i = 0; i < 200; ++i) sum = sum * kept[199 - i] + kept[i];
        y[threadIdx.x] = sum;
    }"""
    assert nvrtc.compile_source(source, "hungry.cu", 80).usage["hungry"].spilled > 0


@pytest.mark.usefixtures("library")
def test_an_error_in_the_source_names_its_line() -> None:
    with pytest.raises(KernelError, match=r"bad\.cu\(2\): error"):
        nvrtc.compile_source("\nint f() { return nothing; }", "bad.cu", 80)


@pytest.mark.usefixtures("library")
def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(DeviceError, match="sm_13"):
        nvrtc.compile_source(GOOD, "good.cu", 13)


def test_without_the_library_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_candidates", lambda: ["/nowhere/libnvrtc.so.13"])
    nvrtc._library.cache_clear()
    try:
        with pytest.raises(DeviceError, match="pip install"):
            nvrtc.version()
    finally:
        nvrtc._library.cache_clear()
