"""gpucnn imports and trains without the modules and names that Windows lacks.

No Windows: sys.platform, its missing modules and its missing names are imitated in a process.
"""

import os
import subprocess
import sys

import pytest

from gpucnn.data import download

MODULES = ("fcntl", "pwd", "resource", "termios")
NAMES = {
    "os": "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK fork getuid geteuid killpg mkfifo pread "
    "sched_getaffinity setsid statvfs sysconf uname",
    "signal": "SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGTSTP pthread_sigmask setitimer",
}
# The standard library and NumPy come first: theirs are for the platform that it really is.
WINDOWS = f"""
import csv, ctypes, json, multiprocessing, os, shutil, signal, socket, subprocess, sys, tempfile
import concurrent.futures, http.client, urllib.request
import numpy as np, threadpoolctl, tqdm
found = threadpoolctl.ThreadpoolController().lib_controllers
threadpoolctl.ThreadpoolController._load_libraries = lambda self: self.lib_controllers.extend(found)
for name in {MODULES}:
    sys.modules[name] = None
for module, names in {NAMES}.items():
    for name in names.split():
        vars(sys.modules[module]).pop(name, None)
sys.platform = "win32"
"""
TRAIN = """
import gpucnn
from gpucnn import data, models, ops, optim, train
import gpucnn.commands, gpucnn.distributed, gpucnn.train.script
images = data.Synthetic(n=16)
model = models.alexnet_cifar10()
normalize = data.Normalize((0.5,) * 3, (0.25,) * 3)
loader = data.DataLoader(images, 8, transform=normalize, device="cpu")
train.Trainer(model, optim.SGD(model.parameters(), 0.001), loader).fit(epochs=1)
gpucnn.save("model.safetensors", model, "alexnet_cifar10")
assert (gpucnn.load("model.safetensors")[0].weight.data == model[0].weight.data).all()
assert gpucnn.commands.main(["kernels"]) == 0
"""


def run(program, folder):
    environment = {**os.environ, "GPUCNN_DEVICE": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=False, timeout=600, cwd=folder, env=environment,
    )  # fmt: skip


def test_gpucnn_trains_saves_and_lists_kernels(tmp_path):
    done = run(WINDOWS + TRAIN, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "conv2d_forward" in done.stdout


@pytest.mark.parametrize("use", ["import fcntl", "os.O_NOFOLLOW", "os.getuid()", "signal.SIGHUP"])
def test_the_imitation_lacks_what_windows_lacks(use, tmp_path):
    done = run(f"{WINDOWS}{use}\n", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(("ModuleNotFoundError", "AttributeError"))


def test_a_download_is_not_opened_as_text(tmp_path, monkeypatch):
    binary, used, system_open = 1 << 30, [], os.open  # a bit that no flag of this system has

    def recorded(path, flags, mode):
        used.append(flags)
        return system_open(path, flags & ~binary, mode)

    monkeypatch.setattr(os, "O_BINARY", binary, raising=False)
    monkeypatch.setattr(os, "open", recorded)
    download._opened(tmp_path / "a.part").close()
    assert [flags & binary for flags in used] == [binary]
