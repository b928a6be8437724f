"""The table of losses by precision."""

import re
from pathlib import Path

import pytest
from scripts import load_script

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "precision_losses.py"


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_each_precision_has_its_losses_and_only_fp32_has_the_cpus(capsys):
    load_script(SCRIPT).main(["--model", "speedrun_cifar10", "--batch", "4", "--steps", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "speedrun_cifar10, batch 4: the loss of each step"
    assert len(lines) == 6
    away = [float(x) for x in re.findall(r"[\d.]+e[+-]\d+", lines[-1])]
    fp32, tf32, bf16, fp16, on_cpu, *halves = away
    assert fp32 == on_cpu == 0.0  # from itself
    assert all(0 < x < 0.05 for x in (tf32, bf16, fp16, *halves))
    losses = [float(x) for x in re.findall(r"\d\.\d{5}", lines[3])]
    assert losses[0] == pytest.approx(losses[4], abs=1e-4)  # fp32 on both
