"""A training script under limits on memory ends in a result, or in a message that names the op."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# MiB beside what the program has
ROOMS = (1, 20, 40, 70, 100, 130, 160, 200, 250, 280, 300, 320, 350, 370, 400, 1200)

# One process imports; for each limit it forks a child, which runs the script.
PROGRAM = """
import contextlib, io, json, os, resource, runpy, sys
import numpy as np
from gpucnn import data
from gpucnn.cpu import limits

script, folder, rooms, batch = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
rng = np.random.default_rng(0)
images, labels = rng.integers(0, 256, (256, 32, 32, 3), np.uint8), np.arange(256) % 10
data.Synthetic = lambda train: data.Dataset(images, labels, [*"abcdefghij"])
sys.path.insert(0, os.path.dirname(script))
main = runpy.run_path(script)["main"]
for room in rooms:
    arguments = "--device cpu --threads 2 --dataset synthetic --epochs 1 --lr 0.001".split()
    arguments += ["--batch-size", batch, "--out", f"{folder}/{room}-{batch}"]
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        error = io.StringIO()
        size = limits._status()["VmSize"] + (room << 20)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
                status = main(arguments)
        except BaseException as raised:
            status = repr(raised)
        lines = error.getvalue().replace("\\r", "\\n").splitlines()
        at = next((i for i, line in enumerate(lines) if "error:" in line), len(lines) - 1)
        text = "\\n".join(lines[at:]).strip()
        os.write(1, (json.dumps([room, status, text]) + "\\n").encode())
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(json.dumps([room, "died", ""]))
"""


def run(rooms, batch, folder):
    """[(room, exit status, last lines of standard error), ...]"""
    script = ROOT / "examples" / "train_alexnet_cifar10.py"
    arguments = [str(script), str(folder), json.dumps(rooms), str(batch)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(rooms), done.stderr
    return results


def test_out_of_memory_on_the_cpu_is_a_message_or_a_finished_run(tally, tmp_path):
    results = run(ROOMS, 256, tmp_path)
    for room, status, error in results:
        print(room, status, error)
        with tally("out of memory on the CPU"):
            assert status in (0, 2), (room, status, error)
            if status == 2:
                assert re.search(r"error: .*(cannot allocate|out of memory)", error), error
    named = [error for _, status, error in results if status == 2 and "in layer" in error]
    assert len(named) >= 3
    assert any("about" in error for error in named)
    assert results[-1][1] == 0
