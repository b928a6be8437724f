"""NVRTC without a GPU: good and bad sources, and the message if it is not installed."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpucnn.cuda import nvrtc, sass
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


def not_found(name: str) -> None:
    raise RuntimeError(f'Failure finding "{name}"')


NOT_INSTALLED = None  # in sys.modules: an import raises ImportError
FINDS_NOTHING = types.SimpleNamespace(
    load_nvidia_dynamic_lib=not_found, find_nvidia_binary_utility=lambda name: None
)


@pytest.fixture
def forgotten() -> Iterator[None]:
    caches = (nvrtc._library, nvrtc.architectures, sass._nvdisasm)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("pathfinder", "reason"),
    [
        (NOT_INSTALLED, "cannot be found without cuda-pathfinder"),
        (FINDS_NOTHING, "was not found"),
    ],
)
def test_without_nvrtc_or_nvdisasm_one_line_says_how_to_install_both(
    monkeypatch: pytest.MonkeyPatch, pathfinder: object, reason: str
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
    monkeypatch.setenv("PATH", "/nowhere")
    for wanted, find in (("NVRTC", nvrtc.version), ("nvdisasm", lambda: sass.main_loops(b""))):
        with pytest.raises(DeviceError) as caught:
            find()
        assert str(caught.value) == f'{wanted} {reason}; pip install "gpucnn[nvrtc]"'


@pytest.mark.usefixtures("forgotten")
def test_nvdisasm_on_path_is_found_where_pathfinder_finds_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", FINDS_NOTHING)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "nvdisasm").write_text("#!/bin/sh\n")
    (tmp_path / "nvdisasm").chmod(0o755)
    assert sass._nvdisasm() == str(tmp_path / "nvdisasm")
