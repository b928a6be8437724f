"""Parts of a check that fail, crash and hang: the run continues, and the report shows it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import is_gone

from gpucnn.commands import main
from gpucnn.commands.check import PARTS, runner

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX's")

HERE = Path(__file__).parent


def victims(seconds: float, case: float = 1.0, patience: float = 1.0) -> runner.Part:
    return runner.Part("victims", "Victims", seconds, seconds, case, "victims", patience)


@pytest.fixture
def pids(tmp_path, monkeypatch):
    """The file to which `hangs` writes its process ID and its child's."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("VICTIMS_PIDS", str(tmp_path / "pids"))
    return tmp_path / "pids"


def check(folder, monkeypatch, cases, part):
    monkeypatch.setenv("VICTIMS", cases)
    status = runner.run("cudasim", True, "lenet5", folder, [part])
    report = json.loads((folder / "report.json").read_text())
    return status, report, (folder / "report.md").read_text()


def states(report):
    return {f["what"]: f["state"] for part in report["parts"] for f in part["findings"]}


@pytest.mark.slow  # it waits for a limit
def test_after_a_case_that_raises_crashes_or_hangs_the_part_continues(tmp_path, monkeypatch, pids):
    cases = "fine raises mistaken crashes hangs last"
    status, report, text = check(tmp_path, monkeypatch, cases, victims(60, case=0.04))
    assert status == 1
    assert states(report) == {
        "fine": "ok", "raises": "fail", "mistaken": "fail", "crashes": "fail",
        "before hanging": "ok", "hangs": "fail", "last": "ok",
    }  # fmt: skip
    assert "ZeroDivisionError: a mistake" in text
    assert "x has 3 channels\n  → build the layer with in_channels=3" in text
    assert "its process ended with SIGSEGV" in text
    assert "the last words" in text
    assert "hangs: killed after 2 s" in text
    assert report["finished"]


@pytest.mark.slow  # it waits for a limit
def test_a_part_is_killed_at_its_limit_with_its_children(tmp_path, monkeypatch, pids):
    status, report, text = check(tmp_path, monkeypatch, "hangs last", victims(4))
    assert status == 1
    assert states(report) == {"before hanging": "ok", "hangs": "fail"}
    assert "killed at the part's limit of 4 s" in text
    assert all(is_gone(int(pid)) for pid in pids.read_text().split())


@pytest.mark.slow  # it waits for a limit
def test_with_patience_a_part_is_killed_later(tmp_path, monkeypatch, pids):
    status, _, text = check(tmp_path, monkeypatch, "hangs", victims(2, patience=2))
    assert status == 1
    assert "killed at the part's limit of 4 s" in text


@pytest.mark.slow  # it waits for a limit
def test_reaching_the_limit_in_an_excused_case_is_not_a_failure(tmp_path, monkeypatch, pids):
    status, report, text = check(tmp_path, monkeypatch, "excused", victims(2))
    assert status == 0
    assert states(report) == {"excused": "note"}
    assert "killed at the part's limit of 2 s: others take as long" in text


@pytest.mark.slow  # it waits for a limit
def test_a_process_that_does_not_exit_after_its_work_is_killed(tmp_path, monkeypatch, pids):
    status, report, text = check(tmp_path, monkeypatch, "lingers", victims(3))
    assert status == 1
    assert states(report) == {"done": "ok", "lingers": "fail"}
    assert "its process finished its work but did not exit" in text


def test_a_killed_run_leaves_its_findings_and_no_process(tmp_path, pids):
    program = (
        "from pathlib import Path; from gpucnn.commands.check import runner; "
        f"runner.run('cudasim', True, 'lenet5', Path({str(tmp_path)!r}), "
        "[runner.Part('victims', 'Victims', 300, 300, 1.0, 'victims')])"
    )
    env = {**os.environ, "VICTIMS": "fine hangs"}
    env["PYTHONPATH"] = os.pathsep.join([str(runner.ROOT), str(HERE)])
    process = subprocess.Popen([sys.executable, "-c", program], env=env)
    path = tmp_path / "report.json"
    end = time.monotonic() + 600
    while time.monotonic() < end and not (path.exists() and "before hanging" in path.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    report = json.loads(path.read_text())
    assert states(report) == {"fine": "ok", "before hanging": "ok"}
    assert not report["finished"]
    text = (tmp_path / "report.md").read_text()
    assert "still running, or killed" in text
    assert "at hangs" in text
    assert all(is_gone(int(pid)) for pid in pids.read_text().split())


def test_the_summary_comes_last_and_is_short_however_many_cases_fail(tmp_path, monkeypatch, pids):
    _, report, text = check(tmp_path, monkeypatch, "raises " * 30 + "fine", victims(60))
    summary = report["summary"]
    assert len(summary) <= 20
    assert text.rstrip().endswith("\n".join(summary) + "\n```")
    assert text.count("ZeroDivisionError: a mistake") >= 30
    assert "and 22 more" in summary[-1]


def test_a_vertical_bar_in_a_cell_is_escaped(tmp_path, monkeypatch, pids):
    status, report, text = check(tmp_path, monkeypatch, "fine", victims(60))
    assert status == 0
    assert "| a \\| b | 1.25 |" in text
    assert report["parts"][0]["tables"]["Numbers"] == [{"of": "a | b", "ms": 1.25}]


def test_an_earlier_report_is_kept(tmp_path, monkeypatch, pids):
    for case in ("raises", "fine"):
        check(tmp_path, monkeypatch, case, victims(60))
    assert "ZeroDivisionError" in (tmp_path / "report.before.md").read_text()
    assert "ZeroDivisionError" not in (tmp_path / "report.md").read_text()
    assert not list(tmp_path.glob("*.partial"))


def test_docs_check_md_explains_every_part_in_order():
    page = (runner.ROOT / "docs" / "check.md").read_text()
    named = re.findall(r"^\*\*(\d) `(\w+)`", page, re.MULTILINE)
    assert named == [(str(i), part.name) for i, part in enumerate(PARTS, 1)]


# --- the command ---


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--device", "cpu"], "device 'cpu' runs no kernels"),
        (["--device", "auto"], "expected cuda, cuda:N"),
        (["--parts", "machine", "nothing"], "there is no part 'nothing'"),
        (["--model", "nothing"], "model 'nothing' is unknown"),
        (["--model", "mlp"], "model mlp cannot be built from {}"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message_and_status_2(flags, words, tmp_path, capsys):
    assert main(["check", *flags, "--out", str(tmp_path / "check")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "check").exists()


def test_a_device_that_cannot_be_used_fails_the_first_part_and_skips_the_others(tmp_path, capsys):
    flags = ["--device", "cuda:97", "--parts", "machine", "probes", "--out", str(tmp_path)]
    assert main(["check", *flags]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert [part["state"] for part in report["parts"]] == ["fail", "skip"]
    assert states(report)["device cuda:97"] == "fail"
    assert "cuda:97 cannot be used" in capsys.readouterr().out


def test_the_parts_import_this_gpucnn_whatever_the_working_directory(tmp_path):
    (tmp_path / "gpucnn").mkdir()
    (tmp_path / "gpucnn" / "__init__.py").write_text("raise SystemExit('the wrong gpucnn')")
    program = (
        f"import sys; sys.path.insert(0, {str(runner.ROOT)!r}); from gpucnn.commands import main; "
        "sys.exit(main('check --device cudasim --quick --parts machine'.split()))"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.stderr == ""
    report = json.loads((tmp_path / "check" / "report.json").read_text())
    assert states(report)["Python"] == "ok"
    assert "the wrong gpucnn" not in json.dumps(report)
