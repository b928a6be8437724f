"""Steps that cannot be replayed run eagerly, with the same bits, and say why once."""

import gc
import random

import numpy as np
import pytest
from replays import BATCH, BATCHES, batches, build, differences, network, replayed, run_steps, state

import gpucnn
from gpucnn import nn, ops, optim
from gpucnn.cuda.graph import Graph
from gpucnn.cudasim import memory, streams
from gpucnn.device import Device, working_on
from gpucnn.errors import ArgumentError, OutOfMemory
from gpucnn.train import captured_step


class Item(nn.Module):
    """Reads a value of the device."""

    def forward(self, x):
        return x * (2.0 if x.sum().item() > 0 else 0.5)


class Branch(nn.Module):
    def forward(self, x):
        return x if (x.data > 0).any() else x * 0.5


class Counts(nn.Module):
    def __init__(self):
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (1.0 + 0.1 * self.calls)


class Notes(nn.Module):
    def __init__(self):
        self.notes = []

    def forward(self, x):
        self.notes.append(x.shape)
        return x


class Keeps(nn.Module):
    """Keeps a result, which may equal that of the step before."""

    def __init__(self):
        self.last = None

    def forward(self, x):
        self.last = (x * 0.0).sum().detach()
        return x


class Draws(nn.Module):
    """Drops itself at random, as in stochastic depth."""

    def __init__(self, draw):
        self.draw = draw

    def forward(self, x):
        return x * 0.5 if self.draw() < 2 else x


class Reads(nn.Module):
    """Depends on a value that is no attribute of the model."""

    clock = [0]

    def forward(self, x):
        return x * (1.0 + 0.1 * self.clock[0])


class Copies(nn.Module):
    def forward(self, x):
        return x + gpucnn.tensor(np.ones(1, np.float32), device=x.device)


class Stacked(nn.Module):
    """A product of stacks of matrices, which CuPy computes."""

    def __init__(self):
        self.weight = gpucnn.tensor(np.stack([np.eye(6, dtype=np.float32)] * 4) * 0.9)

    def forward(self, x):
        return ops.matmul(x, self.weight)


class OtherSGD(optim.SGD):
    """An optimizer whose launches nobody knows."""


def _with(*make):
    """Options for `build`: a network with the module that make[0](*make[1:]) returns."""
    return lambda: {"model": network(make[0](*make[1:]))}


def _draw():
    return gpucnn.random.default_generator().random()


def hooked(layer, register):
    def options():
        model = network()
        getattr(model.layers[layer], register)(lambda *call: None)
        return {"model": model}

    return options


def numpys_dropout():
    return {"model": network(nn.Dropout(0.5, np.random.default_rng(5)))}


def of_float64():
    def transform(images, generator):
        return images.astype(np.float64) / 255

    return {"model": network().astype("float64"), "transform": transform}


REASONS = {
    "it copies a value from or to the host (test_step_graph_refusals.py": _with(Item),
    "it copies a value from or to the host": _with(Branch),
    "it copies a value from or to the host ": _with(Copies),
    "it uses a matrix product of CuPy's": _with(Stacked),
    "the step changes Counts.calls": _with(Counts),
    "the step changes Notes.notes": _with(Notes),
    "the step changes Keeps.last": _with(Keeps),
    "draws random numbers on the host": _with(Draws, random.random),
    "draws random numbers on the host ": _with(Draws, _draw),
    "two steps in a row differ: multiply": _with(Reads),
    "a hook of module 0 runs in every step": hooked(0, "register_forward_hook"),
    "a hook of module 1 runs in every step": hooked(1, "register_forward_pre_hook"),
    "a hook of module 2 runs in every step": hooked(2, "register_full_backward_hook"),
    "does not have parameter 0.weight, whose gradients add up": lambda: {
        "params": lambda model: model.parameters()[1:]
    },
    "OtherSGD is not one of gpucnn's optimizers": lambda: {"make": OtherSGD},
    "on_nan='skip' waits for every step": lambda: {"on_nan": "skip"},
    "its generator is not Philox": numpys_dropout,
    "the optimizer's kernels do not take float64": of_float64,
}  # fmt: skip


def tick(trainer):
    Reads.clock[0] = trainer.step


@pytest.mark.parametrize("reason", REASONS)
def test_a_step_that_cannot_be_replayed_runs_eagerly_and_says_why_once(gpu, reason, capsys):
    states = []
    for graph in (False, True):
        random.seed(1)
        Reads.clock[0] = 0
        gpucnn.manual_seed(0)
        trainer = build(gpu, graph, **REASONS[reason]())
        capsys.readouterr()
        assert replayed(run_steps(trainer, 5, tick)) == [0] * 5
        states.append((state(trainer), random.random()))
    assert reason.strip() in trainer._guard.graph.reason
    error = capsys.readouterr().err
    assert error.count("note: training steps run without a CUDA graph") == 1
    assert reason.strip() in error
    assert differences(states[0][0], states[1][0]) == []
    assert states[0][1] == states[1][1]


def test_a_failed_capture_leaves_everything_as_it_was(gpu):
    trainer = build(gpu, model=network(Counts(), Item()))
    whole = [b for b in batches(trainer, BATCHES) if len(b[1]) == BATCH]
    trainer.model.train()
    for batch in whole[:2]:
        trainer.train_step(*batch)
    guard, tensors = trainer._guard, trainer.model.parameters() + trainer.model.buffers()
    before = state(trainer), [t._version for t in tensors], trainer.model.layers[7].calls
    graph = guard.graph
    key = (whole[2][0].shape, whole[2][0].dtype, whole[2][1].shape, whole[2][1].dtype, None)
    captured = captured_step.CapturedStep(key, trainer, *whole[2])
    reason, final = captured.capture(trainer, guard, next(iter(graph._traces.values())))
    assert "copies a value" in reason
    assert final
    after = state(trainer), [t._version for t in tensors], trainer.model.layers[7].calls
    assert differences(before[0], after[0]) == []
    assert before[1:] == after[1:]
    assert trainer.model.layers[7].calls == 2


def test_without_graph_true_a_module_of_your_own_is_not_captured(capsys):
    """Its Python may depend on anything; only a GPU captures by default."""
    trainer = build("cudasim", None)
    run_steps(trainer, 4)
    assert trainer._guard.graph._captured is None
    own = build("cudasim", None, model=network(Copies()))
    image = gpucnn.tensor(np.zeros((1, 8, 8, 3), np.float32), device="cudasim")
    assert "a Copies, has Python code of its own" in own._guard.graph._unfit(image)
    loss = build("cudasim", None, loss=lambda logits, labels: ops.cross_entropy(logits, labels))
    assert "the loss has Python code of its own" in loss._guard.graph._unfit(image)
    assert trainer._guard.graph._unfit(image) == ""
    assert capsys.readouterr().err == ""


def test_images_that_require_a_gradient_get_one(gpu):
    trainer = build(gpu)
    whole = [b for b in batches(trainer, BATCHES) if len(b[1]) == BATCH]
    trainer.model.train()
    for i, (images, labels) in enumerate(whole[:5]):
        asked = gpucnn.Tensor(images.data, requires_grad=i == 4)
        trainer.train_step(asked, labels)
    assert asked.grad is not None
    assert trainer._guard.graph._captured.replays == 2


def test_graph_true_on_the_cpu_is_an_error():
    with pytest.raises(ArgumentError, match="graph=True needs a model on a GPU"):
        build("cpu")


def test_a_step_with_too_many_values_is_not_captured(gpu, monkeypatch):
    monkeypatch.setattr(captured_step, "_ROOM", 16)
    trainer = build(gpu)
    assert replayed(run_steps(trainer, 4)) == [0] * 4
    assert "bytes change from step to step" in trainer._guard.graph.reason


# --- memory ---


def test_without_memory_for_the_graph_steps_run_eagerly(monkeypatch, capsys):
    trainer = build("cudasim")
    pool_limit = 4096

    made = Graph.__init__

    def limited(self, *arguments):
        made(self, *arguments)
        self._pool.set_limit(pool_limit)

    monkeypatch.setattr(Graph, "__init__", limited)
    assert replayed(run_steps(trainer, 4)) == [0] * 4
    assert "cudasim has no memory left for it" in trainer._guard.graph.reason
    eager = build("cudasim", False)
    run_steps(eager, 4)
    assert differences(state(eager), state(trainer)) == []


def test_without_memory_to_prepare_a_capture_steps_run_eagerly(monkeypatch):
    def full(*arguments):
        raise OutOfMemory(1, 2, 3, "cudasim")

    monkeypatch.setattr(captured_step, "Graph", full)
    trainer = build("cudasim")
    assert replayed(run_steps(trainer, 4)) == [0] * 4
    assert "cudasim has no memory left for it" in trainer._guard.graph.reason


def test_a_graph_gives_its_memory_up_when_none_is_left(monkeypatch):

    gc.collect()  # graphs of other tests
    trainer = build("cudasim")
    run_steps(trainer, 4)
    own = trainer._guard.graph._captured.graph._pool.total_bytes()
    xp = Device("cudasim").xp
    xp.get_default_memory_pool().free_all_blocks()
    room = sum(memory.mapped.values())
    monkeypatch.setenv("GPUCNN_CUDASIM", f"memory={room + own // 4}")
    with working_on(Device("cudasim")):
        big = xp.empty(own // 2, np.uint8)  # more than is free
    assert trainer._guard.graph._captured is None
    assert "no memory left" in trainer._guard.graph.reason
    del big
    monkeypatch.delenv("GPUCNN_CUDASIM")
    run_steps(trainer, 2)
    eager = build("cudasim", False)
    run_steps(eager, 4)
    run_steps(eager, 2)
    assert differences(state(eager), state(trainer)) == []


def test_a_deleted_trainer_frees_its_graph():
    trainer = build("cudasim")
    run_steps(trainer, 4)
    pool = trainer._guard.graph._captured.graph._pool
    blocks = [address for addresses in pool._free.values() for address in addresses]
    assert blocks
    del pool, trainer
    assert not any(address in streams.mapped for address in blocks)
