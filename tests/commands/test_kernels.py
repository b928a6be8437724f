"""gpucnn kernels: the table, and an export that completes or leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpucnn import commands as cli
from gpucnn.commands import kernel_export
from gpucnn.commands.kernel_export import export_kernels
from gpucnn.cuda import nvrtc
from gpucnn.cuda.declarations import kernels
from gpucnn.errors import ArgumentError


def test_the_table_of_kernels_names_file_line_and_caller_of_each(capsys):
    assert cli.main(["kernels"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(kernels()) > 10
    row = next(line for line in lines if line.startswith("max_pool2d_forward "))
    assert "kernels/pool2d.cu:" in row
    assert "gpucnn/ops/pool2d/cuda.py" in row


# --- --export: mistakes, interruptions, full disks ---


@pytest.mark.usefixtures("nvrtc_library")
def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert cli.main(["kernels", "--export", str(tmp_path)]) == 2
    assert "is not empty\n  name a new or an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.usefixtures("nvrtc_library")
def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArgumentError, match="file cannot be written"):
        export_kernels("alexnet_cifar10", [80], tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("nvrtc_library")
def test_an_unknown_architecture_is_refused_and_the_known_ones_are_listed(tmp_path, capsys):
    folder = tmp_path / "kernels"
    assert cli.main(["kernels", "--export", str(folder), "--arch", "80", "13"]) == 2
    error = capsys.readouterr().err
    assert "does not compile for sm_13\n  it supports sm_" in error
    assert not folder.exists()
    with pytest.raises(SystemExit):
        cli.main(["kernels", "--export", str(folder), "--arch", "ampere"])


@pytest.mark.parametrize("flags", ["--arch 90", "--model lenet5", "--batch 4"])
def test_flags_of_export_are_refused_without_it(flags, capsys):
    assert cli.main(["kernels", *flags.split()]) == 2
    assert "--arch, --model and --batch need --export DIR" in capsys.readouterr().err


@pytest.mark.usefixtures("nvrtc_library")
def test_an_unknown_model_leaves_no_folder(tmp_path):
    with pytest.raises(ArgumentError, match="'alexnet13' is unknown"):
        export_kernels("alexnet13", [80], tmp_path / "a" / "kernels")
    assert not (tmp_path / "a" / "kernels").exists()


def test_without_nvrtc_the_error_names_the_remedy_and_nothing_is_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    for function in (nvrtc._library, nvrtc.architectures):
        function.cache_clear()
    try:
        assert cli.main(["kernels", "--export", str(tmp_path / "kernels")]) == 2
    finally:
        for function in (nvrtc._library, nvrtc.architectures):
            function.cache_clear()
    assert (
        'NVRTC cannot be found without cuda-pathfinder; pip install "gpucnn[nvrtc]"'
        in capsys.readouterr().err
    )
    assert not (tmp_path / "kernels").exists()


@pytest.fixture
def instant(monkeypatch):
    """Replace NVRTC with a stand-in that compiles nothing."""

    class Usage(dict):
        def __missing__(self, name):
            return nvrtc.Usage(8, 0, 0, 0)

    binary = nvrtc.Binary(b"cubin", "ptx", Usage())
    monkeypatch.setattr(nvrtc, "architectures", lambda: (80,))
    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    monkeypatch.setattr(nvrtc, "compile_source", lambda *args: binary)


@pytest.mark.usefixtures("instant")
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("there", [False, True])
def test_an_interrupt_or_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, error, there):
    folder = tmp_path / "kernels"
    if there:
        folder.mkdir()
    calls = []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise error
        return nvrtc.Binary(b"cubin", "ptx", {})

    monkeypatch.setattr(nvrtc, "compile_source", failing)
    expected = ArgumentError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
        export_kernels("lenet5", [80], folder, 2)
    assert folder.exists() == there
    assert not list(tmp_path.glob("kernels/*"))


@pytest.mark.usefixtures("instant")
def test_the_manifest_is_the_last_file_to_appear(tmp_path, monkeypatch):
    moved, replace = [], kernel_export.os.replace

    def watched(source, target):
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(kernel_export.os, "replace", watched)
    export_kernels("lenet5", [80], tmp_path, 2)
    assert moved == ["sm_80", "source", "manifest.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "sm_80", "source"]


def test_a_killed_export_leaves_no_manifest_and_says_what_to_remove(tmp_path, request):
    program = (
        "import os, signal, sys\n"
        "from gpucnn.commands import kernel_export; from gpucnn.cuda import nvrtc\n"
        "nvrtc.architectures, nvrtc.version = lambda: (80,), lambda: '13.0'\n"
        "nvrtc.compile_source = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "kernel_export.export_kernels('lenet5', [80], sys.argv[1], 2)"
    )
    folder = tmp_path / "kernels"
    done = subprocess.run([sys.executable, "-c", program, folder], check=False, timeout=600)
    assert done.returncode == -9
    assert [path.name for path in folder.iterdir()] == [".partial"]
    request.getfixturevalue("nvrtc_library")
    with pytest.raises(ArgumentError, match=r"was stopped or is still running\n  remove .*partial"):
        export_kernels("lenet5", [80], folder, 2)


@pytest.mark.usefixtures("instant")
def test_a_folder_without_write_permission_is_named(tmp_path, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write despite file modes
    with pytest.raises(ArgumentError, match=r"kernels cannot be written \(Permission denied\)"):
        export_kernels("lenet5", [80], tmp_path / "kernels", 2)
