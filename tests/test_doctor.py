import sys
import types

import pytest

from gpucnn import cli, doctor
from gpucnn.cudasim import compiler
from gpucnn.errors import DeviceError
from gpucnn.kernel_source import callers, kernels


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path))


def installed(monkeypatch, *names):
    found = [types.SimpleNamespace(metadata={"Name": n}, version="14.0") for n in (*names, "numpy")]
    monkeypatch.setattr(doctor.metadata, "distributions", lambda: iter([*found, *found]))
    monkeypatch.setitem(sys.modules, "cupy", None)


def finding(what):
    return next(f for f in doctor.examine() if f.what == what)


def test_two_cupys_at_once_are_a_fault_with_the_command_that_mends_it(monkeypatch, capsys):
    installed(monkeypatch, "cupy-cuda12x", "cupy-cuda13x")
    cupy = finding("CuPy")
    assert cupy.state == "fault"
    assert "cupy-cuda12x 14.0, cupy-cuda13x 14.0" in cupy.found
    assert cupy.remedy.startswith("pip uninstall -y cupy-cuda12x cupy-cuda13x, then pip install")
    assert cli.main(["doctor"]) == 1
    assert "FAULT    CuPy" in capsys.readouterr().out


def test_one_cupy_is_fine_and_one_without_a_driver_is_a_fault_of_the_gpu(monkeypatch):
    installed(monkeypatch, "cupy-cuda12x")
    assert finding("CuPy").state == "ok"
    assert finding("GPU").state == "fault"


def test_without_cupy_everything_else_is_still_looked_at_and_nothing_is_broken(monkeypatch, capsys):
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


def test_a_missing_compiler_comes_with_the_way_to_get_one(monkeypatch):
    def none():
        raise DeviceError("device cudasim needs a C++17 compiler\n  install one (apt install g++)")

    monkeypatch.setattr(compiler, "compiler", none)
    found = finding("compiler for cudasim")
    assert (found.state, found.remedy) == ("missing", "install one (apt install g++)")


def test_the_data_folder_is_named(tmp_path):
    found = finding("CIFAR-10")
    assert found.state == "missing"
    assert str(tmp_path) in found.found


def test_the_table_of_kernels_names_file_line_and_caller_of_each(capsys):
    assert cli.main(["kernels"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(kernels()) > 10
    row = next(line for line in lines if line.startswith("max_pool2d_forward "))
    assert "kernels/pool2d.cu:" in row
    assert "gpucnn/ops/_pool2d_cuda.py" in row


def test_every_kernel_has_a_caller():
    assert [name for name in kernels() if not callers(name)] == []
