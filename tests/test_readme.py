"""The program and the commands of the README run as printed; packaging lists every package."""

import re
import tomllib
from pathlib import Path

import pytest

import gpucnn
from gpucnn.device import Device, choose_device

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


PROGRAM = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]


@pytest.mark.slow
def test_the_program_runs_as_printed_and_learns(capsys, monkeypatch):
    if choose_device()[0].kind == "cudasim":  # it would take minutes there
        monkeypatch.setenv("GPUCNN_DEVICE", "cpu")
    lines = [line for line in PROGRAM.splitlines() if line.strip()]
    assert len(lines) <= 24
    names: dict = {}
    exec(compile(PROGRAM, "README.md", "exec"), names)
    assert names["accuracy"] > 0.5
    assert "accuracy" in capsys.readouterr().out


def test_the_program_runs_on_a_gpu_when_auto_takes_one(gpu, capsys, monkeypatch):
    monkeypatch.setenv("GPUCNN_DEVICE", gpu)
    program = PROGRAM
    for whole, part in (("n=3000", "n=16"), ("n=500", "n=10"), ("range(6)", "range(1)")):
        assert program.count(whole) == 1
        program = program.replace(whole, part)
    names: dict = {}
    exec(compile(program, "README.md", "exec"), names)
    assert names["model"].parameters()[0].device == Device.parse(gpu)
    assert "the first image is a" in capsys.readouterr().out


def test_the_readme_has_the_two_commands():
    assert "pip install -e . && python examples/train_alexnet_cifar10.py\n" in README
    assert 'pip install -e ".[test]" && pytest\n' in README


def test_the_version_is_stated_once():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in settings["project"]
    version = settings["tool"]["setuptools"]["dynamic"]["version"]
    assert version == {"attr": "gpucnn._version.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", gpucnn.__version__)


def test_every_package_of_the_checkout_is_in_the_wheel_configuration():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "gpucnn").rglob("__init__.py")
    }
    assert set(setuptools["packages"]) == found | {"gpucnn.kernels"}
