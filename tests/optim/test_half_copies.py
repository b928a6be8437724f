"""Half-precision copies of parameters: what the optimizer's launch writes is never out of date."""

import numpy as np
import pytest
from devices import host, leaf, tensor

from gpucnn import cuda, optim
from gpucnn.cuda import compiler, launcher
from gpucnn.device import Device, working_on
from gpucnn.ops._half import half_copy
from gpucnn.precision import bfloat16
from gpucnn.tensor import Tensor

HALVES = [np.dtype(np.float16), bfloat16()]
SHAPES = [(3, 5), (1030,), (4, 4), *[(2,)] * 15]  # 18: two launches


def copies(parameters, half):
    with working_on(parameters[0].device):
        return [half_copy(p._data, half, p.cache()) for p in parameters]


def set_gradients(parameters, rng, device, some=1.0):
    for p in parameters:
        g = rng.standard_normal(p.shape).astype(np.float32)
        p.grad = tensor(g, device).data if rng.random() < some else None


def assert_current(parameters, half):
    """Every copy is the parameter rounded; reads the arrays without dropping the caches."""
    for p, copy in zip(parameters, copies(parameters, half), strict=True):
        assert copy.dtype == half
        np.testing.assert_array_equal(
            host(copy).view(np.uint16), host(p._data).astype(half).view(np.uint16)
        )


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
def test_a_step_writes_the_copies_that_forward_used_and_forward_casts_nothing(kind, half, gpu, rng):
    parameters = [leaf(rng.standard_normal(s).astype(np.float32), gpu) for s in SHAPES]
    optimizer = kind(parameters, 0.1)
    copies(parameters[1:], half)  # parameter 0 is a bias, say
    set_gradients(parameters, rng, gpu)
    optimizer.step()
    assert parameters[0]._cache is None
    written = [p._cache["half", half] for p in parameters[1:]]
    assert all(new is old for new, old in zip(copies(parameters[1:], half), written, strict=True))
    assert_current(parameters, half)
    first = copies(parameters, half)
    for _ in range(2):
        set_gradients(parameters, rng, gpu)
        optimizer.step()
        assert_current(parameters, half)
    for old, new in zip(first[1:], copies(parameters, half)[1:], strict=True):
        assert new.data.ptr == old.data.ptr  # a captured step finds them where they were
        assert new.data.ptr % 16 == 0


def random_actions(gpu, seed, steps=40):
    """Steps, writes, overflows and frozen parameters in random order; a check after each."""
    rng = np.random.default_rng(seed)
    parameters = [leaf(rng.standard_normal(s).astype(np.float32), gpu) for s in SHAPES[:4]]
    optimizer = optim.SGD(parameters, 0.1, momentum=0.9)
    guard = tensor(np.zeros(1, np.int32), gpu).data
    for _ in range(steps):
        action, one = rng.integers(6), parameters[rng.integers(len(parameters))]
        with working_on(one.device):
            if action == 0:
                one.data[...] = 3
            elif action == 1:
                one.data = one.data + 1
                optimizer = optim.SGD(parameters, 0.1, momentum=0.9)
            elif action == 2:
                set_gradients(parameters, rng, gpu, some=0.5)
                optimizer.guard = guard
                if one.grad is not None:
                    one.grad[..., 1] = np.inf
                optimizer.step()
                optimizer.guard = None
            elif action == 3:
                set_gradients(parameters, rng, gpu)
                optimizer.unscale = tensor(np.float32(rng.integers(2)), gpu).data
                optimizer.step()
                optimizer.unscale = None
            else:
                set_gradients(parameters, rng, gpu, some=0.5)
                optimizer.step()
        for half in HALVES if rng.random() < 0.3 else HALVES[:1]:
            assert_current(parameters, half)


@pytest.mark.parametrize("seed", range(4))
def test_copies_are_never_out_of_date(gpu, seed):
    random_actions(gpu, seed)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("if (factor == 0 && !copy) return;", "if (factor == 0) return;"),
        ("packed(value));  // of", "packed(speed));  // of"),
    ],
)
def test_a_kernel_that_leaves_out_copies_is_found(right, wrong, monkeypatch):
    assemble = cuda.assemble
    assert right in assemble("optimizer.cu")
    monkeypatch.setattr(compiler, "assemble", lambda *a: assemble(*a).replace(right, wrong))
    compiler.load_module.cache_clear()
    launcher.checked_kernel.cache_clear()
    try:
        with pytest.raises(AssertionError):
            random_actions("cudasim", 0, steps=100)
    finally:
        compiler.load_module.cache_clear()
        launcher.checked_kernel.cache_clear()


@pytest.mark.usefixtures("compiler")
def test_a_change_that_keeps_the_cache_is_found(monkeypatch):
    monkeypatch.setattr(Tensor, "_changed", lambda self: None)
    monkeypatch.setattr(Tensor, "data", property(lambda self: self._data, Tensor.data.fset))
    with pytest.raises(AssertionError):
        random_actions("cudasim", 0)


def test_gradients_of_any_alignment_give_the_same_bits(gpu, rng):
    size, found = 1030, []
    g = rng.standard_normal(size + 3).astype(np.float32)
    for offset in range(4):
        p = leaf(np.ones(size, np.float32), gpu)
        buffer = tensor(np.roll(g, offset), gpu).data
        optimizer = optim.SGD([p], 0.1, 0.9, weight_decay=0.1)
        with working_on(Device.parse(gpu)):
            p.grad = buffer[offset : offset + size]
        optimizer.step()
        found.append(host(p).tobytes())
    assert len(set(found)) == 1
