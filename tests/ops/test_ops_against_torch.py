"""Every op against PyTorch in float64, on cases that hypothesis draws: see op_strategies.py.

The quick run draws the same few cases every time; `pytest -m slow` draws many.  A failure prints
the case as a `@reproduce_failure` line.
"""

from contextlib import nullcontext

import numpy as np
import pytest
from devices import host
from hypothesis import strategies as st
from op_strategies import SPECIAL, Choices, Drawn, draws, extreme, few_or_many, small_blocks
from random_graphs import Pair, torch
from random_ops import OPS

import gpucnn
from gpucnn import ops
from gpucnn.errors import DtypeError, ShapeError

pytestmark = [
    pytest.mark.skipif(torch is None, reason="the oracle is PyTorch"),
    pytest.mark.filterwarnings("ignore:var.*degrees of freedom:UserWarning"),  # of no elements
]

NO_OPS = {"MaxPool", "get_conv_algorithm", "set_conv_algorithm", "softmax_cross_entropy"}
NO_OPS |= {"eq", "ge", "gt", "le", "lt", "ne"}  # see test_comparison.py

# Each element of the result depends on one element of each operand, so an error is relative to it.
ELEMENTWISE = {
    "abs", "add", "astype", "clamp", "clone", "concatenate", "divide", "dropout", "exp", "flatten",
    "from_nchw", "gelu", "leaky_relu", "log", "multiply", "negative", "pad", "power", "relu",
    "reshape", "sigmoid", "silu", "softplus", "sqrt", "squeeze", "stack", "subtract", "swapaxes",
    "tanh", "to_device", "to_nchw", "transpose", "unsqueeze", "where",
}  # fmt: skip
# Their results are operands, so that the largest numbers overflow nothing.
SELECTING = {"max", "min", "max_pool2d"}
# No elements or too few: gpucnn refuses where PyTorch returns NaN or refuses too.
REFUSE_NOTHING = {
    "batch_norm", "binary_cross_entropy_with_logits", "cross_entropy", "l1_loss", "max", "mean",
    "min", "mse_loss", "nll_loss", "smooth_l1_loss", "var",
}  # fmt: skip
# Ops that also take integers.
INTEGERS = {
    "abs", "add", "clone", "concatenate", "flatten", "from_nchw", "getitem", "matmul", "max", "min",
    "multiply", "negative", "reshape", "squeeze", "stack", "subtract", "sum", "swapaxes",
    "to_device", "to_nchw", "transpose", "unsqueeze", "where",
}  # fmt: skip
MOVING = INTEGERS - {"abs", "add", "matmul", "multiply", "negative", "subtract", "sum"}  # bools too
SEVERAL = ("batch_norm", "conv2d", "conv_transpose2d", "linear", "matmul", "mse_loss")
DTYPES = (np.float32, np.float64, np.float16)


def case(graph, name, twice):
    """Apply op `name` to operands of `graph`: {what: (gpucnn's array, PyTorch's)}."""
    y = OPS[name](graph)
    assert y.ours.shape == tuple(y.theirs.shape)
    assert y.ours.dtype == graph.dtype
    found = {"result": (host(y.ours.data), y.theirs.detach().numpy())}
    assert y.ours.requires_grad == y.theirs.requires_grad
    if not y.ours.requires_grad:
        return found
    y.ours.retain_grad()
    y.theirs.retain_grad()
    z = Pair(y.ours + y.ours, y.theirs + y.theirs) if twice else y
    dy = graph.array(y.shape, graph.dtype)
    z.ours.backward(gpucnn.tensor(dy, graph.device).data)
    z.theirs.backward(torch.tensor(dy.astype(np.float64)))
    named = {f"operand {i} {p.shape}": p for i, p in enumerate(graph.leaves)}
    if not y.ours.is_leaf:
        named["the result"] = y
    for what, p in named.items():
        assert (p.ours.grad is None) == (p.theirs.grad is None), what
        if p.ours.grad is not None:
            assert p.ours.grad.dtype == p.ours.dtype, what
            assert p.ours.grad.flags.c_contiguous or not p.ours.is_leaf, what
            found[f"the gradient of {what}"] = host(p.ours.grad), p.theirs.grad.numpy()
    return found


def compare(what, ours, theirs, dtype, terms):
    """Assert that NaNs and infinities are at the same places, and that numbers are close.

    An op rounds a few times, and a sum of n terms once for each.  Such errors have random signs and
    grow like sqrt(n); each is at most eps / 2 of what is summed, which is about the largest value
    or 1.  float16 is summed in float32.  terms None stands for an element-wise op, whose errors are
    relative to the element itself.  The rounding of batch norm's mean is in every term alike.
    """
    with np.errstate(over="ignore"):
        expected = theirs.astype(dtype)
    assert ours.shape == expected.shape, what
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(expected), what)
    infinite = np.isinf(expected)
    np.testing.assert_array_equal(np.isinf(ours), infinite, what)
    np.testing.assert_array_equal(ours[infinite], expected[infinite], what)
    finite = np.isfinite(expected)
    error = np.abs(ours[finite].astype(np.float64) - theirs[finite])
    size = np.maximum(1, np.abs(theirs[finite]))
    roundings = 4.0
    if terms is not None:
        size = size.max(initial=1)
        alike = what.startswith("batch_norm")
        roundings += 0 if dtype == np.float16 else terms if alike else np.sqrt(terms)
    worst = (error / size).max(initial=0) / np.finfo(dtype).eps
    assert worst <= roundings, f"{what}: off by {worst:.1f} eps, allowed {roundings:.1f}"


def check(draw, name, kind, dtypes=DTYPES, device="cpu"):
    """Draw a case, compare it with PyTorch, and run it again with other numbers of threads."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    values = {"ordinary": (), "special": SPECIAL, "extreme": extreme(dtype)}[kind]
    twice, small = draw(st.booleans()), draw(st.booleans())
    # Winograd's transforms spread an infinity over a tile.
    algorithms = ("auto", "winograd", "exact") if kind == "ordinary" else ("exact",)
    gpucnn.set_conv_algorithm(draw(st.sampled_from(algorithms)))
    choose, runs = Choices(draw), []
    for threads in (1, 1, 3):
        gpucnn.set_num_threads(threads)
        graph = Drawn(choose, (dtype,), values, device, reuse=kind != "extreme")
        try:
            with small_blocks() if small else nullcontext():
                found = case(graph, name, twice)
        except ShapeError:
            assert_refuses_nothing(name, graph)
            return
        for array, before in graph.memory:
            assert array.tobytes() == before, f"{name} writes to an operand"
        if not runs:
            compare_all(found, graph, name, kind)
        runs.append({what: ours.tobytes() for what, (ours, _) in found.items()})
        choose.repeat()
    assert runs[1] == runs[0], "a second run differs"
    assert runs[2] == runs[0], "a run with three threads differs"


def assert_refuses_nothing(name, graph):
    assert name in REFUSE_NOTHING
    assert 0 in [n for p in graph.leaves for n in p.shape]


def compare_all(found, graph, name, kind):
    result = found["result"][0]
    rough = max([graph.dtype, *(p.ours.dtype for p in graph.leaves)], key=lambda d: np.finfo(d).eps)
    terms = max(result.size, *(p.ours.size for p in graph.leaves))
    for what, (ours, theirs) in found.items():
        alone = name in ELEMENTWISE and ours.size == result.size
        if kind == "extreme":
            if ours.size != result.size:
                continue  # a sum may overflow
            if alone:  # so may what the gradient is computed from
                finite = np.isfinite(result).reshape(-1)
                ours, theirs = ours.reshape(-1)[finite], theirs.reshape(-1)[finite]
        compare(f"{name}: {what}", ours, theirs, rough, None if alone else terms)


@pytest.fixture(autouse=True)
def _settings(threads, conv_algorithm):
    """Restore the number of threads and the algorithm; PyTorch uses one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_public_op_is_drawn():
    assert set(OPS) == set(ops.__all__) - NO_OPS
    assert set(OPS) >= ELEMENTWISE | SELECTING | INTEGERS | REFUSE_NOTHING


@few_or_many(5, 40)
@pytest.mark.parametrize("name", OPS)
def test_values_and_gradients_are_pytorchs_for_any_shape_layout_and_setting(name, examples):
    draws(examples, lambda draw: check(draw, name, "ordinary"))


@few_or_many(4, 40)
@pytest.mark.parametrize("name", OPS)
def test_nan_and_infinity_are_where_pytorch_has_them(name, examples):
    draws(examples, lambda draw: check(draw, name, "special"))


@few_or_many(4, 40)
@pytest.mark.parametrize("name", sorted(ELEMENTWISE | SELECTING))
def test_the_largest_and_smallest_numbers_give_pytorchs_results(name, examples):
    draws(examples, lambda draw: check(draw, name, "extreme"))


@few_or_many(2, 12)
@pytest.mark.parametrize("name", sorted(OPS.keys() - {"to_device"}))
def test_a_gpus_code_without_kernels_gives_pytorchs_values_and_gradients(name, examples):
    draws(examples, lambda draw: check(draw, name, "ordinary", (np.float64,), "cudasim"))


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", sorted(OPS.keys() - {"to_device"}))
def test_the_kernels_values_and_gradients_are_pytorchs(name):
    draws(5, lambda draw: check(draw, name, "ordinary", (np.float32,), "cudasim"))


@few_or_many(4, 20)
@pytest.mark.parametrize("name", sorted(OPS.keys() - {"astype", "pad"}))
def test_integers_and_bools_give_pytorchs_result_or_a_dtype_error(name, examples):
    def check_dtype(draw):
        graph = Drawn(Choices(draw), (np.dtype(draw(st.sampled_from((np.int64, np.bool_)))),))
        if name in (MOVING if graph.dtype == bool else INTEGERS):
            try:
                found = case(graph, name, twice=False)
            except ShapeError:
                assert_refuses_nothing(name, graph)
                return
            except DtypeError as error:
                if "a float with a tensor of" in str(error):
                    return
                raise
            for ours, theirs in found.values():
                np.testing.assert_array_equal(ours, theirs)
        else:
            with pytest.raises(DtypeError):
                OPS[name](graph)

    draws(examples, check_dtype)


@few_or_many(3, 20)
@pytest.mark.parametrize("name", SEVERAL)
def test_operands_of_two_dtypes_are_refused(name, examples):
    def check_dtypes(draw):
        dtypes = draw(st.permutations(DTYPES))[:2]
        graph = Drawn(Choices(draw), tuple(map(np.dtype, dtypes)), reuse=False)
        try:
            OPS[name](graph)
        except DtypeError:
            return
        assert len({p.ours.dtype for p in graph.leaves}) < 2  # without a bias

    draws(examples, check_dtypes)
