"""gpucnn doctor: every finding, and the remedy for each fault."""

import sys
import types

import pytest

from gpucnn import commands as cli
from gpucnn.commands import doctor
from gpucnn.cudasim import compiler
from gpucnn.errors import DeviceError


@pytest.fixture(autouse=True)
def _empty_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path))


def installed(monkeypatch, *names, version="14.0"):
    found = [
        types.SimpleNamespace(metadata={"Name": n}, version=version) for n in (*names, "numpy")
    ]
    monkeypatch.setattr(doctor.metadata, "distributions", lambda: iter([*found, *found]))
    monkeypatch.setitem(sys.modules, "cupy", None)


def finding(what):
    return next(f for f in doctor.examine() if f.what == what)


def test_two_cupy_distributions_are_a_fault_with_the_command_that_fixes_it(monkeypatch, capsys):
    installed(monkeypatch, "cupy-cuda12x", "cupy-cuda13x")
    cupy = finding("CuPy")
    assert cupy.state == "fault"
    assert "cupy-cuda12x 14.0, cupy-cuda13x 14.0" in cupy.found
    assert cupy.remedy.startswith("pip uninstall -y cupy-cuda12x cupy-cuda13x, then pip install")
    assert cli.main(["doctor"]) == 1
    assert "FAULT    CuPy" in capsys.readouterr().out


def test_a_missing_driver_is_a_fault_of_the_gpu_not_of_cupy(monkeypatch):
    installed(monkeypatch, "cupy-cuda12x")
    assert finding("CuPy").state == "ok"
    assert finding("GPU").state == "fault"


@pytest.mark.parametrize(
    ("name", "version", "found"),
    [
        ("cupy-cuda12x", "13.6.0", "cupy-cuda12x 13.6.0 is older than 14"),
        ("cupy-rocm-7-0", "14.2.0", "cupy-rocm-7-0 14.2.0 is for AMD GPUs"),
    ],
)
def test_a_cupy_that_is_too_old_or_for_other_gpus_is_a_fault(monkeypatch, name, version, found):
    installed(monkeypatch, name, version=version)
    cupy = finding("CuPy")
    assert cupy.state == "fault"
    assert found in cupy.found
    assert cupy.remedy.startswith(f'pip uninstall -y {name}, then pip install "gpucnn[cuda12]"')


# --- with CuPy: what its runtime and its NVRTC report ---


class DynamicLibNotFoundError(RuntimeError):
    """cuda.pathfinder's."""


NVRTC_13 = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121]
NVRTC_12 = [50, 52, 60, 61, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 120]


@pytest.fixture
def cupy(monkeypatch):
    """cupy-cuda13x on a driver for CUDA 13.1 with one GPU, sm_80; headers are found."""
    installed(monkeypatch, "cupy-cuda13x")
    properties = {"name": b"A card", "major": 8, "minor": 0, "totalGlobalMem": 2**34}
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda index: properties,
        driverGetVersion=lambda: 13010,
        runtimeGetVersion=lambda: 13000,
    )
    nvrtc = types.SimpleNamespace(getVersion=lambda: (13, 0), getSupportedArchs=lambda: NVRTC_13)

    def no_library(name):
        raise DynamicLibNotFoundError(name)

    pathfinder = types.SimpleNamespace(
        find_nvidia_header_directory=lambda name: f"/cuda/{name}",
        load_nvidia_dynamic_lib=no_library,
    )
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
    fake = types.SimpleNamespace(
        cuda=types.SimpleNamespace(runtime=runtime, nvrtc=nvrtc),
        ndarray=type("ndarray", (), {}),
        properties=properties,
        pathfinder=pathfinder,
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def test_a_gpu_that_works_is_named_with_its_driver_and_compiler(cupy):
    assert finding("GPU").found == "driver for CUDA 13.1; cuda:0 A card, sm_80, 16 GiB"
    assert finding("CuPy's compiler").found == "NVRTC 13.0, compiles for sm_75 to sm_121"
    assert [f for f in doctor.examine() if f.state == "fault"] == []


OLDER = 'pip uninstall -y cupy-cuda13x, then pip install "gpucnn[cuda12]"'
NEWER = 'upgrade CuPy: pip install --upgrade "cupy-cuda13x[ctk]"'


@pytest.mark.parametrize(
    ("capability", "version", "known", "remedy"),
    [
        ((7, 0), (13, 0), NVRTC_13, OLDER),
        ((6, 1), (13, 0), NVRTC_13, OLDER),
        ((3, 7), (12, 8), NVRTC_12, "use --device cpu or cudasim"),
        ((13, 0), (13, 0), NVRTC_13, NEWER),
        ((10, 3), (12, 8), NVRTC_12, NEWER),
        ((7, 0), (12, 8), NVRTC_12, None),
        ((12, 1), (12, 8), NVRTC_12, None),  # runs code for sm_120
        ((7, 5), (13, 0), NVRTC_13, None),
    ],
)
def test_a_gpu_that_nvrtc_does_not_support_comes_with_the_cupy_that_does(
    cupy, capability, version, known, remedy
):
    cupy.properties["major"], cupy.properties["minor"] = capability
    cupy.cuda.nvrtc.getVersion = lambda: version
    cupy.cuda.nvrtc.getSupportedArchs = lambda: known
    found = finding("CuPy's compiler")
    if remedy is None:
        assert found.state == "ok"
        return
    assert (found.state, found.remedy) == ("fault", remedy)
    assert f"does not compile for cuda:0, sm_{capability[0]}{capability[1]}" in found.found


def test_a_cupy_without_nvrtc_or_headers_is_a_fault_and_the_extra_is_named(cupy):
    cupy.pathfinder.find_nvidia_header_directory = lambda name: None
    found = finding("CuPy's compiler")
    assert (found.state, found.found) == (
        "fault",
        "NVRTC 13.0, but the CUDA headers were not found",
    )
    assert 'headers: pip install "gpucnn[cuda12]"' in found.remedy

    def fail():
        raise DynamicLibNotFoundError('Failure finding "libnvrtc.so.13":\n  No such file')

    cupy.cuda.nvrtc.getVersion = fail
    found = finding("CuPy's compiler")
    assert found.state == "fault"
    assert "NVRTC cannot be loaded (Failure finding" in found.found
    assert "\n" not in found.found
    assert 'headers: pip install "gpucnn[cuda12]"' in found.remedy


@pytest.mark.parametrize(
    ("driver", "remedy"),
    [
        (
            12020,
            f"the driver is for CUDA 12.2, CuPy for CUDA 13.0: {OLDER}, or install a newer driver",
        ),
        (11080, "the driver is for CUDA 11.8, CuPy for CUDA 13.0: install a newer driver"),
        (0, "install NVIDIA's driver"),
        (13010, "use --device cpu or cudasim"),  # new enough: another fault
    ],
)
def test_a_driver_older_than_cupys_cuda_is_named_with_both_remedies(cupy, driver, remedy):
    def fail():
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")

    cupy.cuda.runtime.getDeviceCount = fail
    cupy.cuda.runtime.driverGetVersion = lambda: driver
    found = finding("GPU")
    assert found.state == "fault"
    assert "cudaErrorInsufficientDriver" in found.found
    assert found.remedy.startswith(remedy)


def test_without_cupy_everything_else_is_examined_and_nothing_is_a_fault(monkeypatch, capsys):
    installed(monkeypatch)
    assert finding("CuPy").state == finding("GPU").state == "missing"
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert len(heads) == 7
    assert all(line.split()[0] in ("ok", "missing") for line in heads)
    for i, line in enumerate(lines):
        if line.startswith("missing"):
            assert lines[i + 1].strip().startswith("->"), line


def test_a_missing_compiler_comes_with_the_command_that_installs_one(monkeypatch):
    def none():
        raise DeviceError("device cudasim needs a C++17 compiler\n  install one (apt install g++)")

    monkeypatch.setattr(compiler, "compiler", none)
    found = finding("compiler for cudasim")
    assert (found.state, found.remedy) == ("missing", "install one (apt install g++)")


def test_the_data_folder_is_named(tmp_path):
    found = finding("CIFAR-10")
    assert found.state == "missing"
    assert str(tmp_path) in found.found


def test_a_data_folder_that_does_not_exist_is_named_with_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path / "misspelt"))
    found = finding("CIFAR-10")
    assert found.found == f"GPUCNN_DATA: {tmp_path / 'misspelt'} does not exist"
    assert found.remedy.startswith("correct the name, or make the folder")


def test_damaged_data_is_a_fault_beside_the_other_findings(tmp_path, capsys):
    (tmp_path / "test_batch.bin").write_bytes(b"x")
    found = finding("CIFAR-10")
    assert found.state == "fault"
    assert found.found == f"{tmp_path / 'data_batch_1.bin'} is missing"
    assert found.remedy.startswith("extract cifar-10-binary.tar.gz again")
    assert cli.main(["doctor"]) == 1
    assert "usable cores" in capsys.readouterr().out
