"""The examples that fit on a page: they run alone, offline, and learn."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_digits_example_has_twenty_lines_learns_and_draws_its_curves(tmp_path):
    pytest.importorskip("matplotlib", reason="draws")
    script = EXAMPLES / "digits.py"
    lines = [line for line in script.read_text().splitlines() if line.strip()]
    assert len(lines) <= 24
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    share = float(re.search(r"([\d.]+)% of 397 digits right", result.stdout)[1])
    assert share > 95
    assert (tmp_path / "digits.png").read_bytes()[:4] == b"\x89PNG"


def test_the_recap_networks_learn_to_tell_irises_apart(capsys):
    iris = runpy.run_path(str(EXAMPLES / "train_iris.py"))
    assert iris["main"]() == 0
    shares = [float(share) for share in re.findall(r"([\d.]+)% of 45", capsys.readouterr().out)]
    assert len(shares) == 2
    assert min(shares) > 90


def test_the_iris_file_is_fishers_table():
    iris = runpy.run_path(str(EXAMPLES / "train_iris.py"))
    _, labels, species = iris["load"]()
    assert species == ("setosa", "versicolor", "virginica")
    assert [int((labels == k).sum()) for k in range(3)] == [50, 50, 50]
    lines = (EXAMPLES / "data" / "iris.csv").read_text().splitlines()
    assert len(lines) == 151
    rows = [[float(v) for v in line.split(",")[:4]] for line in lines[1:]]
    sums = [round(sum(column), 1) for column in zip(*rows, strict=True)]
    assert sums == [876.5, 458.6, 563.7, 179.9]
    # where the other well-known copy is wrong
    assert lines[35] == "4.9,3.1,1.5,0.2,setosa"
    assert lines[38] == "4.9,3.6,1.4,0.1,setosa"


def test_training_and_test_flowers_do_not_overlap():
    iris = runpy.run_path(str(EXAMPLES / "train_iris.py"))
    training, test = iris["split"](iris["load"]()[1])
    assert (len(training), len(test)) == (105, 45)
    assert not set(training) & set(test)
