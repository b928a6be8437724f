"""ncu and compute-sanitizer: their output determines the finding; a missing tool has a remedy."""

import stat
import sys

import pytest
from processes import is_gone
from recorded import Recorded

from gpucnn.commands.check import profiles, sanitizer, tools


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A function that puts a tool on PATH which prints a text and exits with a status."""

    def put(name, text, status=0):
        (tmp_path / "text").write_text(text)
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\ncat {tmp_path / 'text'}\nexit {status}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return put


NCU = "\n".join(
    [
        "==PROF== Connected to process 7",
        '"ID","Process ID","Kernel Name","gpu__time_duration.sum",'
        '"sm__throughput.avg.pct_of_peak_sustained_elapsed","launch__grid_size"',
        '"","","","ns","%",""',
        '"0","7","conv2d_forward_128x128_vector(const float *, int)","1,500","81.5","256"',
        '"1","7","relu_backward(const float *)","2500","12","32"',
    ]
)


def test_ncus_table_is_read_with_its_units():
    assert profiles.read_ncu(NCU) == [
        {"kernel": "conv2d_forward_128x128_vector", "us": 1.5, "SM %": 81.5, "blocks": 256.0},
        {"kernel": "relu_backward", "us": 2.5, "SM %": 12.0, "blocks": 32.0},
    ]
    assert profiles.read_ncu("==ERROR== something else") == []


@pytest.mark.skipif(sys.platform == "win32", reason="the tools are shell scripts")
@pytest.mark.parametrize(
    ("text", "status", "state"),
    [
        (NCU, 0, "ok"),
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n", 1, "skip"),
        ("==ERROR== no kernels were profiled\n", 0, "fail"),
    ],
)
def test_ncu_is_run_and_its_refusal_has_a_remedy(text, status, state, tool):
    tool("ncu", text, status)
    recorded = Recorded("cuda")
    profiles._ncu(recorded.reporter, tools.find("ncu"))
    assert recorded.states() == {"ncu": state}


CLEAN = "========= ERROR SUMMARY: 0 errors\n"
RACES = "========= RACECHECK SUMMARY: {} displayed\n"


@pytest.mark.skipif(sys.platform == "win32", reason="the tools are shell scripts")
@pytest.mark.parametrize(
    ("text", "status", "state"),
    [
        ("ran relu\nran dropout\n" + CLEAN, 0, "ok"),
        (RACES.format("0 hazards"), 0, "ok"),
        ("========= Invalid __global__ read of size 4 bytes\n", 9, "fail"),
        ("========= Error: Race reported between Read and Write\n" + RACES.format(1), 9, "fail"),
        ("WRONG: relu is off by 1e-3, allowed 2e-06\n" + CLEAN, 1, "fail"),
        ("========= Error: Target application terminated before the first call\n", 1, "fail"),
    ],
)
def test_the_output_of_compute_sanitizer_determines_the_finding(text, status, state, tool):
    tool("compute-sanitizer", text, status)
    recorded = Recorded("cuda")
    sanitizer._sanitize(recorded.reporter, tools.find("compute-sanitizer"), "memcheck", 60)
    assert recorded.states() == {"memcheck": state}


def test_a_missing_tool_is_skipped_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(tools, "find", lambda tool: None)
    recorded = Recorded("cuda")
    sanitizer.examine(recorded.reporter)
    (finding,) = recorded.all("finding")
    assert (finding["state"], finding["found"]) == ("skip", "not installed")
    assert "apt install" in finding["remedy"]


@pytest.mark.skipif(sys.platform == "win32", reason="the tools are shell scripts")
def test_a_tool_is_killed_at_its_limit_with_its_children_and_its_output_is_kept(tmp_path):
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    done = tools.output([sys.executable, "-c", script], 1.0)
    assert done.status is None
    assert is_gone(int(done.text))
