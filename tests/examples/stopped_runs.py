"""Training scripts that are killed in the middle."""

import signal
import subprocess
import sys
import time

from gpucnn import train

# A process that hangs in step 3, after saving steps 1 and 2
CHILD = """
import runpy, sys, time
from gpucnn import train
train_step = train.Trainer.train_step

def slow(self, images, labels):
    if self.step == 2:
        time.sleep(300)
    train_step(self, images, labels)

train.Trainer.train_step = slow
sys.argv = sys.argv[1:]
"""
RUN = "runpy.run_path(sys.argv[0], run_name='__main__')"


def kill_in_step_3(script, flags, out, before=""):
    """Run `before` and `script`, which saves every step, in a process; kill -9 it in step 3."""
    command = [sys.executable, "-c", CHILD + before + RUN, str(script), *flags]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--save-every", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 600
    while True:
        time.sleep(0.02)
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        path = out / "last.safetensors"
        if path.exists() and train.read_checkpoint(path).info["step"] == 2:
            break
    process.kill()
    assert process.wait() == -signal.SIGKILL
