"""A whole run of `gpucnn check`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpucnn.commands import main
from gpucnn.commands.check import runner


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_quick_run_on_the_simulator_finds_no_fault(tmp_path):
    assert main(["check", "--device", "cudasim", "--quick", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert [part["state"] for part in report["parts"]].count("ok") == 8
    assert len(report["summary"]) <= 20
    assert Path(tmp_path, "report.md").read_text().count("\n## ") == 10


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_wrong_kernel_one_that_does_not_compile_and_a_part_that_hangs_are_reported(tmp_path):
    """The faults are in a copy of the checkout, which PYTHONPATH selects."""
    root = runner.ROOT
    for folder in ("gpucnn", "kernels"):
        shutil.copytree(root / folder, tmp_path / folder)
    shutil.copy(root / "pyproject.toml", tmp_path)
    for file, right, wrong in (
        ("kernels/pool2d.cu", "value[i] > best[i]", "value[i] >= best[i]"),
        ("kernels/activation.cu", "__global__", "__global__ nonsense"),
        (
            "gpucnn/commands/check/probes.py",
            "def _stream(reporter: Reporter) -> None:\n",
            "{}    while True: pass\n",
        ),
        ("gpucnn/commands/check/__init__.py", "40, 25, 0.5)", "40, 25, 0.07)"),  # hangs sooner
    ):
        text = (tmp_path / file).read_text()
        assert right in text
        (tmp_path / file).write_text(text.replace(right, wrong.replace("{}", right)))
    command = [
        sys.executable,
        "-P",
        "-m",
        "gpucnn",
        "check",
        "--device",
        "cudasim",
        "--quick",
    ]
    done = subprocess.run(
        [*command, "--parts", "agreement", "probes", "--out", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        timeout=1500,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    failed = {
        finding["what"]: finding["found"] + finding["remedy"]
        for part in report["parts"]
        for finding in part["findings"]
        if finding["state"] == "fail"
    }
    pools = [text for what, text in failed.items() if what.startswith("max_pool2d")]
    assert pools
    assert any("of the largest value" in text for text in pools)
    assert "nonsense" in failed["relu"]
    assert "killed" in failed["non-default stream"]
    assert report["finished"]
