"""Disks that are full, read-only or odd, file by file: nothing that was saved is lost.

Every fault is real: files that may not grow, a full and a read-only tmpfs, names that are taken,
folders that vanish, processes without rights, files or output.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from forked_runs import NEW, RESUME, Runs, assert_same, next_flags
from reliability.tally import bounded
from small_script import same_bits


def messages(folder):
    """What the processes in `folder` have said on standard error; it is then forgotten."""
    text = (folder / "stderr").read_text()
    (folder / "stderr").write_text("")
    assert "Traceback" not in text
    assert "Exception ignored" not in text
    return text


def finish(runs, folder, whole):
    """Continue the run after the fault, or start it again, and compare it with `whole`."""
    runs.finish(folder, whole)
    messages(folder)


# --- logs: the run goes on ---

DURING_LOGS = """
from gpucnn.train import callbacks
write = callbacks.{log}._write

def on_a_full_disk(self, *arguments):
    limit("RLIMIT_FSIZE", 10)  # bytes: the kernel refuses to write more
    try:
        write(self, *arguments)
    finally:
        limit("RLIMIT_FSIZE", -1)
        {last}

callbacks.{log}._write = on_a_full_disk
"""


@pytest.mark.parametrize(
    ("name", "log"), [("metrics.csv", "MetricsFile"), ("config.json", "SettingsFile")]
)
@pytest.mark.parametrize("ends", [True, False])
def test_a_log_on_a_full_disk_is_one_warning(name, log, ends, runs, whole, tmp_path, tally):
    setup = DURING_LOGS.format(log=log, last=f"callbacks.{log}._write = write" if ends else "")
    with tally("a full disk under metrics.csv or config.json"), bounded():
        assert runs.run(tmp_path, *NEW, setup=setup) == 0
        text = messages(tmp_path)
        assert text.startswith(f"warning: run/{name} cannot be written (File too large): raise ")
        assert len(text.splitlines()) == 1
        assert (tmp_path / "run" / name).exists() == ends  # written by the next epoch
        assert same_bits(tmp_path / "run", whole / "run")
        finish(runs, tmp_path, whole)


@pytest.mark.parametrize("name", ["metrics.csv", "config.json", "curves.png"])
def test_a_folder_in_place_of_a_log_is_one_warning(name, runs, whole, tmp_path, tally):
    setup = ""
    if name == "curves.png":
        pytest.importorskip("matplotlib", reason="needs matplotlib")
        setup = "del sys.modules['matplotlib']"
    with tally("a folder in place of metrics.csv, config.json or curves.png"), bounded():
        (tmp_path / "run" / name).mkdir(parents=True)
        assert runs.run(tmp_path, *NEW, setup=setup) == 0
        text = messages(tmp_path)
        assert text.startswith(f"warning: run/{name} cannot be written (Is a directory): ")
        assert len(text.splitlines()) == 1
        (tmp_path / "run" / name).rmdir()
        finish(runs, tmp_path, whole)


@pytest.mark.parametrize("name", ["metrics.csv", "config.json"])
@pytest.mark.parametrize("make", ["os.mkfifo({0!r})", "os.symlink('nowhere/x', {0!r})"])
def test_a_fifo_or_a_dangling_link_in_place_of_a_log_ends_no_run(
    name, make, runs, whole, tmp_path, tally
):
    with tally("a FIFO or a dangling link in place of a log"), bounded():
        (tmp_path / "run").mkdir()
        assert runs.run(tmp_path, *NEW, setup=make.format(f"run/{name}")) == 0
        assert len(messages(tmp_path).splitlines()) <= 1
        (tmp_path / "run" / name).unlink()
        finish(runs, tmp_path, whole)


OUTPUTS = {
    "a full standard output": "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)",
    "a full standard error": "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
    "a closed pipe": "r, w = os.pipe(); os.close(r); os.dup2(w, 1); os.dup2(w, 2)",
    "closed": "os.close(1); os.close(2); sys.stdout = sys.stderr = None",
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("quiet", [True, False])
def test_training_needs_no_standard_output(output, quiet, runs, whole, tmp_path, tally):
    flags = NEW if quiet else [flag for flag in NEW if flag != "--quiet"]
    with tally("standard output and error that are full, closed or without a reader"), bounded():
        assert runs.run(tmp_path, *flags, setup=OUTPUTS[output]) == 0
        text = messages(tmp_path)
        assert text.count("warning: standard output") == (output == "a full standard output")
        assert_same(tmp_path, whole)


# --- checkpoints: the run ends, and goes on after the fault ---

FAULTS = {  # name: (setup, words of the error, the remedy)
    "no space for the first checkpoint": (
        "limit('RLIMIT_FSIZE', 20000)", "safetensors cannot be written (File too large)", ""),
    "no space for a later checkpoint": (
        "in_step(5, lambda: limit('RLIMIT_FSIZE', 20000))",
        "then resume with --resume run/last.safetensors, which continues after epoch 1", ""),
    "no space for anything": (
        "limit('RLIMIT_FSIZE', 0)", "", ""),
    "a folder in place of last.safetensors": (
        "in_step(5, lambda: (os.rename('run/last.safetensors', 'moved'), "
        "os.mkdir('run/last.safetensors')))",
        "run/last.safetensors cannot be written (Is a directory)",
        "rmdir run/last.safetensors; mv moved run/last.safetensors"),
    "a folder in place of last-1.safetensors": (
        "os.makedirs('run'); in_step(2, lambda: os.mkdir('run/last-1.safetensors'))",
        "run/last-1.safetensors cannot be written (Is a directory)",
        "rmdir run/last-1.safetensors"),
    "a folder in place of best.safetensors": (
        "os.makedirs('run'); in_step(2, lambda: os.mkdir('run/best.safetensors'))",
        "run/best.safetensors cannot be written (Is a directory)", "rmdir run/best.safetensors"),
    "a folder in place of run.lock": (
        "os.makedirs('run/run.lock')", "run/run.lock cannot be written (Is a directory)",
        "rmdir run/run.lock"),
    "a FIFO in place of run.lock": (
        "os.makedirs('run'); os.mkfifo('run/run.lock')", None, ""),
    "a folder that vanishes": (
        "import shutil; in_step(5, lambda: shutil.rmtree('run'))",
        "safetensors cannot be written (No such file or directory): create its folder again",
        "mkdir run"),
    "a file in place of the folder": (
        "open('run', 'w').close()", "--out: run cannot be created (File exists)", "rm run"),
    "no more open files": (
        "in_step(5, lambda: limit('RLIMIT_NOFILE', len(os.listdir('/proc/self/fd')) - 1))",
        "safetensors cannot be written (Too many open files)", ""),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("every", [0, 1])
def test_a_fault_under_a_checkpoint_loses_nothing(fault, every, runs, whole, tmp_path, tally):
    setup, words, remedy = FAULTS[fault]
    with tally(fault), bounded():
        status = runs.run(tmp_path, *NEW, "--save-every", every, setup=setup)
        text = messages(tmp_path)
        if words is None:
            assert (status, text) == (0, "")
        else:
            assert status == 2
            assert fault == "no space for anything" or len(text.splitlines()) <= 2
            assert text.count("error: ") == (fault != "no space for anything")
            assert words in text
        subprocess.run(remedy, shell=True, cwd=tmp_path, check=True)
        finish(runs, tmp_path, whole)


@pytest.mark.parametrize("every", [0, 1])
def test_a_fifo_that_takes_the_name_of_a_checkpoint_loses_nothing(
    every, runs, whole, tmp_path, tally
):
    last = tmp_path / "run" / "last.safetensors"
    swap = f"os.rename({str(last)!r}, 'moved'), os.mkfifo({str(last)!r})"
    with tally("a FIFO in place of last.safetensors"), bounded():
        flags = (*NEW, "--save-every", every)
        status = runs.run(tmp_path, *flags, setup=f"in_step(5, lambda: ({swap}))")
        assert status in (0, 2)  # it is replaced, or the run ends
        assert len(messages(tmp_path).splitlines()) == (1 if status else 0)
        if status:
            (tmp_path / "moved").rename(last)
        finish(runs, tmp_path, whole)


def test_a_fifo_as_the_newest_checkpoint_falls_back_and_does_not_hang(runs, whole, tmp_path, tally):
    last = tmp_path / "run" / "last.safetensors"
    with tally("a FIFO in place of last.safetensors"), bounded():
        assert runs.run(tmp_path, *NEW, "--save-every", 2) == 0
        last.unlink()
        os.mkfifo(last)
        status = runs.run(tmp_path, *RESUME)
        assert status in (0, 2)
        assert "warning: using run/last-1.safetensors instead" in messages(tmp_path)
        if status:
            last.unlink()
        finish(runs, tmp_path, whole)


def test_a_name_that_is_too_long_is_one_error(runs, tmp_path, tally):
    with tally("a folder's name that is too long"), bounded():
        assert runs.run(tmp_path, "--out", "x" * 300) == 2
        assert "cannot be created (File name too long)" in messages(tmp_path)


@pytest.mark.parametrize("step", [None, 5])
def test_a_folder_without_the_right_to_write_loses_nothing(step, runs, whole, tally):
    with tempfile.TemporaryDirectory(dir="/tmp") as name, bounded():
        folder = Path(name)
        (folder / "run").mkdir()
        for path in (folder, folder / "run"):
            path.chmod(0o777)
        setup = "" if os.geteuid() else "os.setuid(65534)\n"  # root may write everywhere
        lock = "os.chmod('run', 0o555)"
        setup += lock if step is None else f"in_step({step}, lambda: {lock})"
        if not os.geteuid():
            for path in (folder, folder / "run"):
                os.chown(path, 65534, 65534)
        with tally("a folder without the right to write"):
            assert runs.run(folder, *NEW, setup=setup) == 2
            text = messages(folder)
            assert "cannot be written (Permission denied): make that folder writable" in text
            assert len(text.splitlines()) == 1
            (folder / "run").chmod(0o777)
            finish(runs, folder, whole)


# --- a small disk of its own ---


@pytest.fixture(scope="module")
def disk():
    """(server that sees a tmpfs, the folder that is the tmpfs)."""
    alone = ("unshare", "-rm") if os.geteuid() else ("unshare", "-m")
    mount = [*alone, "mount", "-t", "tmpfs", "none", "/mnt"]
    if not shutil.which("unshare") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    with tempfile.TemporaryDirectory() as folder:
        shell = 'mount -t tmpfs -o size=2m none "$0" && exec "$@"'
        server = Runs(*alone, "sh", "-c", shell, folder)
        yield server, Path(folder)
        server.close()


BALLAST = """
def fill(room):
    free = os.statvfs(".").f_bavail * os.statvfs(".").f_frsize
    with open("ballast", "wb") as file:
        file.write(bytes(max(free - room, 0)))
"""
DISKS = {  # fault: (its setup, words of the error)
    "a full disk from the start": (BALLAST + "fill(0)", "cannot be written (No space left"),
    "a disk that the first checkpoint fills": (
        BALLAST + "fill(30000)", "cannot be written (No space left on device): free some space"),
    "a disk that a later checkpoint fills": (
        BALLAST + "in_step(5, lambda: fill(30000))",
        "then resume with --resume run/last.safetensors, which continues after epoch 1, step 3"),
    "a read-only disk": (
        "import subprocess; os.mkdir('run'); subprocess.run('mount -o remount,ro .', shell=True)",
        "cannot be written (Read-only file system): choose a folder on a writable disk"),
}  # fmt: skip

REPAIR = "import subprocess; subprocess.run('mount -o remount,rw .; rm -f ballast', shell=True)"
REPAIR += "; os._exit(0)"
CLEAN = "import shutil; shutil.rmtree('run'); os._exit(0)"


@pytest.mark.parametrize("fault", DISKS)
def test_a_full_or_read_only_disk_loses_nothing(fault, disk, whole, tmp_path, tally):
    server, folder = disk
    setup, words = DISKS[fault]
    with tally(fault), bounded():
        assert server.run(folder, *NEW, setup=setup, said=tmp_path) == 2
        text = messages(tmp_path)
        assert words in text
        assert text.count("error: ") == 1
        assert server.run(folder, setup=REPAIR, said=tmp_path) == 0
        saved = Path(f"/proc/{server.process.pid}/root{folder}")
        assert server.run(folder, *next_flags(saved), said=tmp_path) == 0
        shutil.copytree(saved / "run", tmp_path / "run")
        assert_same(tmp_path, whole)
        assert server.run(folder, setup=CLEAN, said=tmp_path) == 0
