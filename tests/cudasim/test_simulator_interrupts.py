"""Ctrl-C ends a kernel that does not terminate, and the simulator remains usable."""

import os
import subprocess
import sys

import pytest

LOOPS = {
    "arithmetic": "for (;;) x[0] = x[0] + 1;",
    "barriers of a block": "for (;;) { x[0] = 1; __syncthreads(); }",
    "barriers of a warp": "for (;;) { x[0] = 1; __syncwarp(); }",
    "the C library": "for (;;) x[0] = (int)expf(sinf((float)x[0])) | 1;",
    "one of two": "if (threadIdx.x == 0) while (true) x[0] = 1; __syncthreads();",
}

PROGRAM = """
import os, signal, sys, threading, time
from gpucnn import cudasim

body, presses, blocks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
code = '''
extern "C" __global__ void endless(volatile int* x) { BODY }
extern "C" __global__ void count(int* x) { __syncthreads(); atomicAdd(x, 1); }
'''.replace("BODY", body)
module = cudasim.RawModule(code=code)
x = cudasim.zeros(1, "int32")
count = module.get_function("count")
count((blocks,), (64,), (x,))
assert x.item() == 64 * blocks
x.fill(0)

heard = []
if presses > 1:  # like train.Trainer, which finishes the step after the first
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
else:  # shells make background processes ignore SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)

def press():
    for _ in range(presses):
        while not (x.item() or os.environ["GPUCNN_CUDASIM"].startswith(("address", "race"))):
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

finger = threading.Thread(target=press)
try:
    finger.start()
    module.get_function("endless")((blocks,), (64,), (x,))
except KeyboardInterrupt:
    print("interrupted")
finger.join()
assert len(heard) == (presses > 1)
x.fill(0)
count((blocks,), (64,), (x,))
assert x.item() == 64 * blocks
print("usable")
"""


def run(loop: str, mode: str, presses: int = 1, blocks: int = 4) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, LOOPS[loop], str(presses), str(blocks)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "GPUCNN_CUDASIM": mode},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("loop", LOOPS)
def test_ctrl_c_ends_an_endless_kernel_and_the_next_one_runs(loop: str) -> None:
    assert run(loop, "threads=2").split() == ["interrupted", "usable"]


@pytest.mark.parametrize("mode", ["address", "race", "debug", "schedule=highest,threads=1"])
def test_ctrl_c_ends_an_endless_kernel_in_every_mode(mode: str) -> None:
    assert run("arithmetic", mode).split() == ["interrupted", "usable"]


def test_a_handler_that_does_not_raise_gets_the_first_ctrl_c_and_the_second_ends_the_kernel() -> (
    None
):
    assert run("arithmetic", "threads=2", presses=2).split() == ["interrupted", "usable"]
