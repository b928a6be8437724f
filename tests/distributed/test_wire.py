import math

import numpy as np
import pytest
from devices import host, tensor
from fake_ranks import run
from given_gradients import SHAPES, backward, gradients_of, leaves, sgd

from gpucnn.device import array_module, device_of, working_on
from gpucnn.distributed.wire import add_bfloat16, pack, unpack
from gpucnn.optim.finite import step_if_finite


@pytest.mark.parametrize(("wire", "bits"), [("fp16", 11), ("bf16", 8), ("fp32", 24)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_gradients_are_sent_and_added_in_grad_dtype(device, wire, bits, dtype):
    def program(comm):
        parameters = leaves(*SHAPES, device=device, dtype=dtype)
        optimizer = sgd(parameters, comm, grad_dtype=wire)
        backward(parameters, gradients_of(comm.rank, SHAPES))
        optimizer.reduce()
        assert {p.grad.dtype for p in parameters} == {np.dtype(dtype)}
        return comm.calls, [host(p.grad) for p in parameters]

    (calls, first), (_, second) = run(2, program)
    own = {np.float16: "fp16", np.float32: "fp32"}.get(dtype)
    sent = {"fp16": "float16", "fp32": "float32"}.get(wire, wire)
    assert [call.split()[1] for call in calls] == [sent]
    bits = min(bits, {np.float16: 11, np.float32: 24, np.float64: 53}[dtype])
    for a, b, x, y in zip(first, second, *map(gradients_of, (0, 1), [SHAPES] * 2), strict=True):
        assert np.array_equal(a, b)
        mean = (x.astype(np.float64) + y) / 2
        # Each share and their sum are rounded once; to dtype too, unless that is the wire's
        roundings = 3 if own == wire else 5
        bound = roundings * 2.0**-bits * (np.abs(x) + np.abs(y) + 2.0**-13)  # fp16 underflows
        assert (np.abs(a - mean) <= bound).all()
        if wire == "bf16" and dtype is np.float32:
            assert np.array_equal(a.view(np.uint32) & 0xFFFF, np.zeros(a.shape))


def test_a_gradient_that_overflows_fp16_is_infinite_on_all_ranks_and_the_step_is_refused():
    def program(comm):
        parameters = leaves((4,))
        optimizer = sgd(parameters, comm, grad_dtype="fp16")
        backward(parameters, [np.array([1.0, 2e5, -2e5, 1e5 * (1 + comm.rank)])])
        optimizer.reduce()
        return host(parameters[0].grad).tolist(), step_if_finite(optimizer.optimizer) is not None

    assert run(2, program) == [([1.0, math.inf, -math.inf, math.inf], True)] * 2


def bfloat16(x):
    """The nearest bfloat16 of a finite float64, ties to even, as a float: by arithmetic."""
    mantissa, exponent = math.frexp(x)
    exponent = max(exponent, -125)  # subnormal below
    return math.ldexp(round(math.ldexp(x, 8 - exponent)), exponent - 8) if x else mantissa


def test_bfloat16_rounds_to_nearest_even(device, rng):
    values = np.concatenate([
        rng.standard_normal(200), 10.0 ** rng.uniform(-44, 38, 200),
        1 + np.arange(-9, 9) / 512, [0.0, -0.0, 1e-45, 3.3e38],
    ]).astype(np.float32)  # fmt: skip
    x = tensor(values, device).data
    with working_on(device_of(x)):
        xp = array_module(x)
        sent, back, total = xp.empty(x.shape, np.uint16), xp.empty_like(x), xp.empty_like(x)
        pack(x, "bf16", sent)
        unpack(sent, "bf16", back)
        add_bfloat16(sent, sent[::-1].copy(), sent)
        unpack(sent, "bf16", total)
    assert host(back).tolist() == [bfloat16(float(v)) for v in values]
    exact = host(back).astype(np.float64) + host(back)[::-1]
    assert host(total).tolist() == [bfloat16(float(np.float32(v))) for v in exact]


def test_bfloat16_keeps_nan_infinity_and_signs():
    bits = [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000, 0x7F7FFFFF]
    x = np.array(bits, np.uint32).view(np.float32)
    sent, back = np.empty(7, np.uint16), np.empty(7, np.float32)
    pack(x, "bf16", sent)
    unpack(sent, "bf16", back)
    assert np.isnan(back[:3]).all()
    assert back[3:].tolist() == [math.inf, -math.inf, 0, math.inf]
    assert np.signbit(back[5])
