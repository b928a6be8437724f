"""Threads of a block: barriers, warp functions, atomics, schedules, errors that end a launch."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gpucnn import cudasim
from gpucnn.errors import KernelError

EVERY = ["fast", "fast,schedule=highest", "fast,schedule=random:5", "address", "race", "debug"]


def kernel(body: str, parameters: str = "int* out") -> str:
    return f'extern "C" __global__ void kernel({parameters}) {{ int t = threadIdx.x; {body} }}'


# --- barriers and warp functions ---


@pytest.mark.parametrize("mode", EVERY)
@pytest.mark.parametrize("width", [32, 8])
def test_shuffles_move_values_within_groups_of_lanes(simulate, width, mode):
    out = np.zeros((4, 64), np.int32)
    code = kernel(f"""
        out[t] = __shfl_sync(0xffffffffu, 100 + t, 3, {width});
        out[64 + t] = __shfl_up_sync(0xffffffffu, 100 + t, 2, {width});
        out[128 + t] = __shfl_down_sync(0xffffffffu, 100 + t, 2, {width});
        out[192 + t] = __shfl_xor_sync(0xffffffffu, 100 + t, 5, {width});""")
    simulate(code, "kernel", 1, 64, out, mode=mode)
    t = np.arange(64)
    start, last = t // width * width, t // width * width + width - 1
    np.testing.assert_array_equal(out[0], 100 + start + 3)
    np.testing.assert_array_equal(out[1], 100 + np.where(t - 2 < start, t, t - 2))
    np.testing.assert_array_equal(out[2], 100 + np.where(t + 2 > last, t, t + 2))
    np.testing.assert_array_equal(out[3], 100 + (t ^ 5))


@pytest.mark.parametrize("mode", EVERY)
def test_two_halves_of_a_warp_synchronize_separately(simulate, mode):
    out = np.zeros(32, np.int32)
    code = kernel("""
        if (t < 16) { for (int d = 8; d; d /= 2) t += __shfl_xor_sync(0x0000ffffu, t, d); }
        else t = __ballot_sync(0xffff0000u, t % 2);
        out[threadIdx.x] = t;""")
    simulate(code, "kernel", 1, 32, out, mode=mode)
    np.testing.assert_array_equal(out[:16], 120)
    np.testing.assert_array_equal(out.view(np.uint32)[16:], 0xAAAA0000)


@pytest.mark.parametrize("mode", EVERY)
def test_votes_and_counting_barriers(simulate, mode):
    out = np.zeros((6, 48), np.int32)
    code = kernel("""
        out[t] = __any_sync(0xffffffffu, t == 40);
        out[48 + t] = __all_sync(0xffffffffu, t < 32);
        out[96 + t] = __syncthreads_count(t % 3 == 0);
        out[144 + t] = __syncthreads_or(t == 47);
        out[192 + t] = __syncthreads_and(t < 48);
        out[240 + t] = __syncthreads_and(t < 47);""")
    simulate(code, "kernel", 1, 48, out, mode=mode)  # the second warp has 16 lanes
    np.testing.assert_array_equal(out[0], np.arange(48) >= 32)
    np.testing.assert_array_equal(out[1], np.arange(48) < 32)
    assert [set(row) for row in out[2:]] == [{16}, {1}, {1}, {0}]


@pytest.mark.parametrize("mode", ["fast", "fast,threads=3", "race"])
def test_atomics_lose_no_update_between_blocks(simulate, mode):
    counts, total, extremes = np.zeros(4, np.int32), np.zeros(1, np.float32), np.array([9, 9])
    code = kernel(
        """
        int i = blockIdx.x * 64 + t;
        atomicAdd(&counts[i % 3], 1);
        atomicInc((unsigned*)&counts[3], 99u);
        atomicAdd(total, 0.5f);
        atomicMax(extremes, (long long)i);
        atomicMin(extremes + 1, (long long)-i);""",
        "int* counts, float* total, long long* extremes",
    )
    simulate(code, "kernel", 150, 64, counts, total, extremes, mode=mode)
    assert counts.tolist() == [3200, 3200, 3200, 0]  # 9600 increments modulo 100
    assert total[0] == 4800
    assert extremes.tolist() == [9599, -9599]


def test_compare_and_swap_builds_a_lock_free_maximum(simulate):
    best = np.zeros(1, np.uint32)
    code = kernel(
        """
        unsigned mine = (t * 37) % 101, old = *best;
        while (old < mine) { unsigned seen = atomicCAS(best, old, mine); if (seen == old) break;
                             old = seen; }""",
        "unsigned* best",
    )
    simulate(code, "kernel", 4, 101, best)
    assert best[0] == 100


# --- schedules ---


def order_of_threads(simulate, mode: str) -> list[int]:
    """The order in which 96 threads pass a barrier, in each of 2 blocks."""
    out = np.zeros(194, np.int32)
    code = kernel("__syncthreads(); out[2 + atomicAdd(out, 1)] = blockIdx.x * 96 + t;")
    simulate(code, "kernel", 2, 96, out, mode=f"{mode},threads=1")
    return out[2:].tolist()


def test_greedy_schedules_run_from_one_end(simulate):
    assert order_of_threads(simulate, "schedule=lowest") == list(range(192))
    assert order_of_threads(simulate, "schedule=highest") == list(range(191, -1, -1))


def test_the_random_schedule_is_an_order_of_its_seed(simulate):
    first = order_of_threads(simulate, "schedule=random:1")
    assert sorted(first) == list(range(192))
    assert first == order_of_threads(simulate, "schedule=random:1")
    assert first != order_of_threads(simulate, "schedule=random:2")
    assert first[:96] != sorted(first[:96])


def test_the_random_schedule_runs_every_block_once(simulate):
    for blocks in (1, 2, 7, 64, 90):
        out, order = np.zeros(blocks, np.int32), np.zeros(blocks + 1, np.int32)
        code = kernel(
            """atomicAdd(&out[blockIdx.x], 1);
            order[1 + atomicAdd(order, 1)] = blockIdx.x;""",
            "int* out, int* order",
        )
        simulate(code, "kernel", blocks, 1, out, order, mode="schedule=random:3,threads=1")
        assert out.tolist() == [1] * blocks
    assert order[1:].tolist() != sorted(order[1:])


def test_a_forked_process_launches_too():
    code = """
import os, warnings
from gpucnn import cudasim
warnings.simplefilter("ignore")  # about the parent's threads, which the child lacks
x = cudasim.zeros(4096, "int32")
module = cudasim.RawModule(code='extern "C" __global__ void f(int* x) { x[blockIdx.x] += 1; }')
module.get_function("f")((4096,), (1,), (x,))
child = os.fork()
module.get_function("f")((4096,), (1,), (x,))
assert (x.get() == 2).all()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "GPUCNN_CUDASIM": "threads=2"}
    )


# --- poison ---


def test_shared_memory_is_poisoned_for_every_block(simulate):
    out = np.zeros((8, 64), np.float32)
    code = kernel(
        """
        __shared__ float tile[64];
        extern __shared__ unsigned more[];
        out[blockIdx.x * 64 + t] = t % 2 ? tile[t] : __uint_as_float(more[t]);
        tile[t] = 1.0f; more[t] = 1u;""",
        "float* out",
    )
    simulate(code, "kernel", 8, 64, out, shared=256)
    assert np.isnan(out).all()


def test_a_register_that_is_never_set_is_not_zero(simulate):
    out = np.zeros(4, np.float32)
    simulate(kernel("float sum[4]; out[t] = sum[t] + 1.0f;", "float* out"), "kernel", 1, 4, out)
    assert (np.abs(out) > 1e9).all() or np.isnan(out).all()


# --- errors that end a launch ---


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (t != 3) __syncthreads();", r"waits forever in __syncthreads at "
         r"kernels.cpp:1: thread \(3, 0, 0\) has returned"),
        ("if (t < 32) __syncthreads();\nelse __syncthreads();", "waits in __syncthreads at "
         "kernels.cpp:2, but other threads of the block wait in __syncthreads at kernels.cpp:1"),
        ("if (t == 1) __syncwarp(1);", r"calls __syncwarp at kernels.cpp:1 with "
         "mask 0x00000001, which omits its own lane 1"),
        ("__syncwarp(t < 4 ? 0xffffffffu : 0xfffffff0u);", "with mask 0xfffffff0, but other lanes "
         "of its warp wait in __syncwarp at kernels.cpp:1 with mask 0xffffffff"),
        ("if (t == 5) return;\n__syncwarp();", r"__syncwarp at kernels.cpp:2 with mask 0xffffffff: "
         r"thread \(5, 0, 0\), which the mask names, has returned"),
        ("if (t < 4) __any_sync(~0u, 1);\nelse __all_sync(~0u, 1);", "calls __all_sync at "
         "kernels.cpp:2, but other lanes of its warp wait in __any_sync at kernels.cpp:1"),
        ("__shfl_sync(~0u, t, 0, 12);", "width 12: expected a power of two"),
        ("__shared__ float tile[13000]; tile[t] = 0;", "52000 bytes of shared memory.*48 KB"),
        ("out[-(1LL << 40)] = t;", "accesses unmapped address 0x[0-9a-f]+; "
         "GPUCNN_CUDASIM=address names the line"),
        ("out[t] = 1000 / (out[t] - 1);", "divides an integer by zero"),
        ("assert(t < 3);", r"fails assert\(t < 3\) at kernels.cpp:1"),
        ("if (t == 7) __trap();", "calls __trap at kernels.cpp:1"),
        ("__builtin_trap();", "reaches code with undefined behaviour"),
    ],
)  # fmt: skip
def test_a_broken_rule_ends_the_launch_with_kernel_block_and_thread(simulate, body, message):
    with pytest.raises(KernelError, match=r"^kernel: block \(\d, 0, 0\), thread \(\d.*" + message):
        simulate(kernel(body), "kernel", 2, 64, np.ones(64, np.int32))


def test_a_failed_launch_does_not_affect_the_next_one(simulate):
    out = np.zeros(64, np.int32)
    for _ in range(3):
        with pytest.raises(KernelError):
            simulate(kernel("if (t != 3) __syncthreads();"), "kernel", 4, 64, out)
        simulate(kernel("__syncthreads(); out[t] = t;"), "kernel", 1, 64, out)
        np.testing.assert_array_equal(out, np.arange(64))


def test_after_too_much_shared_memory_other_kernels_still_get_shared_memory(simulate):
    out = np.zeros(64, np.int32)
    with pytest.raises(KernelError, match="48 KB"):
        simulate(kernel("__shared__ float tile[13000]; tile[t] = 0;"), "kernel", 1, 64, out)
    simulate(
        kernel("__shared__ int tile[64]; tile[t] = t; out[t] = tile[t];"), "kernel", 1, 64, out
    )
    np.testing.assert_array_equal(out, np.arange(64))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts mappings in /proc")
def test_python_threads_that_have_ended_leave_no_memory_mapped(simulate):
    def launch():
        simulate(kernel("out[t] = t;"), "kernel", 1, 64, np.zeros(64, np.int32))

    def mappings():
        return len(Path("/proc/self/maps").read_bytes().splitlines())

    launch()
    before = mappings()
    for _ in range(8):
        thread = threading.Thread(target=launch)
        thread.start()
        thread.join()
    # A thread that can launch has 2050 of Linux's 65530; the last may not have ended entirely.
    assert mappings() < before + 3 * 2050


def test_printf_in_a_kernel_prints(simulate, capfd):
    simulate(
        kernel(r'if (t == 2) printf("thread %d has %.2f\n", t, 0.25);'), "kernel", 1, 4, np.zeros(1)
    )
    assert capfd.readouterr().out == "thread 2 has 0.25\n"


@pytest.mark.slow  # it compiles the runtime
def test_processors_without_a_context_switch_in_assembly_use_the_c_librarys():
    code = """
import numpy as np
from gpucnn import cudasim
from gpucnn.cudasim import compiler
compiler._COMMON += ("-DCUDASIM_UCONTEXT",)
x = cudasim.asarray(np.arange(256, dtype=np.int32))
module = cudasim.RawModule(code='''extern "C" __global__ void turn(int* x) {
    __shared__ int tile[256];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = tile[255 - threadIdx.x];
}''')
module.get_function("turn")((1,), (256,), (x,))
assert (x.get() == np.arange(256)[::-1]).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_blocks_are_freed_in_one_thread_while_others_allocate():
    pool, stop, errors = cudasim.get_default_memory_pool(), threading.Event(), []

    def allocate():
        try:
            while not stop.is_set():
                arrays = [cudasim.zeros(1000 * (i % 3 + 1), np.float32) for i in range(5)]
                for array in arrays:
                    array += 1
                    assert (array.get() == 1).all()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=allocate) for _ in range(3)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 0.7
    while time.monotonic() < end:
        pool.free_all_blocks()
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
