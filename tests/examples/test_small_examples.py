"""The one-page examples run by themselves, offline, and learn."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


GALLERY = (EXAMPLES.parent / "docs" / "gallery.md").read_text(encoding="utf-8")

# Runs a script as if matplotlib were not installed
WITHOUT_MATPLOTLIB = """
import runpy, sys
sys.modules["matplotlib"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(folder, *command):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_the_digits_example_has_as_many_lines_as_the_gallery_says():
    assert "## Handwritten digits in thirty lines\n" in GALLERY
    assert len((EXAMPLES / "digits.py").read_text().splitlines()) == 30


def share_of_digits(result):
    assert result.returncode == 0, result.stderr
    return float(re.search(r"([\d.]+)% of 397 digits right", result.stdout)[1])


@pytest.mark.slow
def test_the_digits_example_learns_and_draws_its_curves(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    assert share_of_digits(run(tmp_path, EXAMPLES / "digits.py")) > 95
    assert (tmp_path / "digits.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_the_digits_example_learns_and_says_what_is_missing(
    tmp_path,
):
    result = run(tmp_path, "-c", WITHOUT_MATPLOTLIB, EXAMPLES / "digits.py")
    assert share_of_digits(result) > 95
    last = result.stdout.splitlines()[-1]
    assert last.startswith("digits.png was not drawn: ")
    assert last.endswith('pip install "gpucnn[plot]"')
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_lecture_is_printed_and_says_what_is_missing(tmp_path):
    result = run(tmp_path, "-c", WITHOUT_MATPLOTLIB, EXAMPLES / "lecture.py", "--out", "pictures")
    assert result.returncode == 0, result.stderr
    assert "max pooling, 3x3:\n  9 9 7\n  7 5 8\n  4 6 8\n" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last == 'no PNG files in pictures: they need matplotlib: pip install "gpucnn[plot]"'
    assert list(tmp_path.iterdir()) == []


def test_the_gallerys_screenshot_command_parses():
    pytest.importorskip("PIL", reason="needs Pillow")
    command = re.search(r"python docs/(screenshot\.py .*)\\\n(.*)\n", GALLERY)
    path, *words = shlex.split(command[1] + command[2])
    options = runpy.run_path(str(EXAMPLES.with_name("docs") / path))["parse_arguments"](words)
    assert options.page == Path("RUN/look_inside.html")
    assert options.picture == Path("docs/look_inside.png")
    assert options.titles == ["Where it looks", "What excites a channel"]
    assert (options.width, options.dark) == (1080, False)


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
    # rows that are wrong in the other well-known copy
    assert lines[35] == "4.9,3.1,1.5,0.2,setosa"
    assert lines[38] == "4.9,3.6,1.4,0.1,setosa"


def test_training_and_test_flowers_do_not_overlap():
    iris = runpy.run_path(str(EXAMPLES / "train_iris.py"))
    training, test = iris["split"](iris["load"]()[1])
    assert (len(training), len(test)) == (105, 45)
    assert not set(training) & set(test)
