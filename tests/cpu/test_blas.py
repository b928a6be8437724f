"""Batched matrix products, whole and in blocks, and the number of BLAS's threads."""

import os
import subprocess
import sys

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from gpucnn.cpu import blas, empty, parallel, single_threaded_blas

# rows, depth, columns: less than a block, whole blocks, blocks and a remainder; panels of 64, of 32
# and of all columns; too deep for any block
SMALL = [(1, 3, 5), (16, 20, 64), (128, 64, 192), (77, 300, 96), (130, 976, 64), (40, 977, 32)]
SHAPES = [*SMALL, (77, 300, 130), (40, 1954, 32)]


def _in_panels(b):
    """b (stack, depth, columns) in the panels that `multiply` expects."""
    stack, depth, columns = b.shape
    width = blas.panel_width(depth, columns)
    panels = empty((stack, columns // width, depth, width), b.dtype)
    panels[...] = b.reshape(stack, depth, -1, width).transpose(0, 2, 1, 3)
    return panels


@pytest.mark.parametrize("small_kernels", [False, True])
@pytest.mark.parametrize(("rows", "depth", "columns"), SHAPES)
def test_blocks_cover_the_product(monkeypatch, rng, rows, depth, columns, small_kernels):
    monkeypatch.setattr(blas, "_blas_has_small_kernels", lambda: small_kernels)
    a = empty((3, rows + 1, depth), np.float32)[:, :rows]  # padded, as in Winograd
    b = rng.standard_normal((3, depth, columns), np.float32)
    a[...] = rng.standard_normal(a.shape)
    out = np.full((3, rows + 1, columns), np.nan, np.float32)
    blas.multiply(a, _in_panels(b), out[:, :rows])
    expected = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(out[:, :rows], expected, rtol=0, atol=1e-5 * depth**0.5)
    assert np.isnan(out[:, rows:]).all()


@pytest.mark.parametrize(("rows", "depth", "columns"), SMALL)
def test_blocks_are_small_enough_for_blas(monkeypatch, rows, depth, columns):
    monkeypatch.setattr(blas, "_blas_has_small_kernels", lambda: True)
    blocks = []
    matmul = np.matmul

    def noting(a, b, out):
        blocks.append(a.shape[-2] * a.shape[-1] * b.shape[-1])
        for x in (a, b, out):  # none is transposed
            assert x.strides[-1] == 4 or x.shape[-1] == 1
        return matmul(a, b, out=out)

    monkeypatch.setattr(np, "matmul", noting)
    a, b, out = (2, rows, depth), (2, depth, columns), (2, rows, columns)
    b = _in_panels(np.zeros(b, np.float32))
    blas.multiply(np.zeros(a, np.float32), b, np.zeros(out, np.float32))
    assert blocks
    assert max(blocks) <= 100**3


@pytest.mark.parametrize("small_kernels", [False, True])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(192, 256, 64), (80, 30, 96), (7, 300, 5)])
def test_blocks_cover_the_product_with_a_transposed_matrix(
    monkeypatch, rng, rows, depth, columns, small_kernels
):
    monkeypatch.setattr(blas, "_blas_has_small_kernels", lambda: small_kernels)
    a = empty((3, depth + 1, rows), np.float32)[:, :depth]  # padded, as in Winograd
    b = empty((3, depth + 1, columns), np.float32)[:, :depth]
    a[...], b[...] = rng.standard_normal(a.shape), rng.standard_normal(b.shape)
    out = np.full((3, rows, columns), np.nan, np.float32)
    blas.multiply_transposed(a, b, out)
    expected = a.astype(np.float64).transpose(0, 2, 1) @ b.astype(np.float64)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * depth**0.5)


# --- threads ---


def test_numpys_blas_is_found():
    name = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    if not any(known in name for known in ("openblas", "mkl", "blis")):
        pytest.skip(f"threadpoolctl does not control {name}")
    with single_threaded_blas():
        assert blas._blas._found


def blas_threads():
    return {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}


def test_blas_has_one_thread_inside_a_piece_and_its_own_number_after():
    before = blas_threads()
    inside = []
    parallel(lambda _: inside.append(blas_threads()), range(3))
    with single_threaded_blas():
        inside.append(blas_threads())
    assert inside == [{1}] * 4
    assert blas_threads() == before


def test_every_thread_of_the_caller_can_limit_blas():
    code = """
import threading
from threadpoolctl import threadpool_info, threadpool_limits
from gpucnn.cpu import single_threaded_blas
def limit():
    with single_threaded_blas():
        print(*{i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"})
threadpool_limits(2, "blas")  # this thread has set the number, and lives on
limit()
other = threading.Thread(target=limit)
other.start()
other.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_limit_blas_although_a_thread_of_its_parent_held_the_lock():
    code = """
import os, signal
from gpucnn.cpu import blas, single_threaded_blas
blas._blas._lock.acquire()  # as another thread may at the fork
child = os.fork()
if child == 0:
    signal.alarm(120)  # a deadlock ends here
    with single_threaded_blas():
        pass
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, check=True, timeout=600)
