"""What changes between two replayed steps counts from the next one on, as in eager steps."""

import dataclasses
import functools

import pytest
from replays import (
    BATCH,
    BATCHES,
    batches,
    build,
    differences,
    network,
    replayed,
    run_steps,
    state,
)

import gpucnn
from gpucnn import cuda, nn, ops, optim
from gpucnn.cuda.step_values import StepValues
from gpucnn.device import Device, to_host, working_on
from gpucnn.errors import ArgumentError, GraphError


def _set_data(trainer):
    parameter = trainer.model.parameters()[0]
    parameter.data[...] *= 0.5


def _load(trainer):
    weights = {k: to_host(v) * 0.5 for k, v in trainer.model.state_dict().items()}
    trainer.model.load_state_dict(weights)


def _freeze(trainer):
    trainer.model.layers[0].requires_grad_(False)


def _momentum(trainer):
    trainer.optimizer.param_groups[0]["momentum"] = 0.5


def _dropout(trainer):
    trainer.model.layers[4].p = 0.6


def _drop_a_layer(trainer):
    trainer.model.pop(6)


def _evaluation_mode(trainer):
    trainer.model.layers[1].eval()


def _optimizer(trainer):
    trainer.optimizer = optim.SGD(trainer.model.parameters(), 0.05)
    trainer.ranks._optimizer = trainer.optimizer
    trainer.scheduler = None


def _optimizer_state(trainer):
    saved = trainer.optimizer.state_dict()
    trainer.optimizer.load_state_dict({**saved, "velocity": saved["velocity"] * 0})


def _rate(trainer):
    trainer.scheduler = None
    trainer.optimizer.lr = 0.001


def _algorithm(trainer):
    gpucnn.set_conv_algorithm("plain")


CHANGES = {
    _set_data: 1, _load: 1, _rate: 1, _optimizer_state: 1,  # the graph goes on
    _freeze: 0, _momentum: 0, _dropout: 0, _drop_a_layer: 0, _evaluation_mode: 0, _optimizer: 0,
    _algorithm: 0,
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__[1:])
def test_a_change_between_steps_counts_from_the_next_step_on(gpu, change, conv_algorithm):
    conv_algorithm("auto")
    before = gpucnn.get_conv_algorithm()
    states = []
    for graph in (False, True):
        trainer = build(gpu, graph)

        def after(trainer):
            if trainer.step == 4:
                with working_on(Device.parse(gpu)):
                    change(trainer)

        counts = run_steps(trainer, 8, after)
        gpucnn.set_conv_algorithm(before)
        if graph:
            next_step = CHANGES[change]
            assert replayed(counts) == [0, 0, 1, 1, next_step, 1, 1, 1]
        states.append(state(trainer))
    assert differences(*states) == []


@dataclasses.dataclass
class Settings:
    smoothing: float = 0.0


class Plain:
    smoothing = 0.0


class Scaled(nn.Module):
    def __init__(self, settings):
        super().__init__()
        self.settings = settings

    def forward(self, x):
        return x * (1 - self.settings.smoothing)


def modules(kind, settings):
    return [Scaled(settings)] if kind == "a module's object" else []


def from_a_dict(kept):
    return lambda y, labels: ops.cross_entropy(y, labels, label_smoothing=kept["smoothing"])


def from_an_object(settings):
    return lambda y, labels: ops.cross_entropy(y, labels, label_smoothing=settings.smoothing)


@pytest.mark.parametrize("kind", ["a dict", "an object", "a dataclass", "a module's object"])
def test_what_the_users_code_reads_from_a_container_or_an_object_counts(gpu, kind):
    states = []
    for graph in (False, True):
        settings, kept = Settings() if kind == "a dataclass" else Plain(), {"smoothing": 0.0}
        loss = {"a dict": from_a_dict(kept), "a module's object": ops.cross_entropy}.get(
            kind, from_an_object(settings)
        )
        trainer = build(gpu, graph, lambda s=settings: network(*modules(kind, s)), loss=loss)

        def after(trainer, settings=settings, kept=kept):
            if trainer.step == 4:
                kept["smoothing"] = settings.smoothing = 0.25

        counts = run_steps(trainer, 7, after)
        if graph:
            assert replayed(counts) == [0, 0, 1, 1, 0, 1, 1]
        states.append(state(trainer))
    assert differences(*states) == []


def test_a_parameter_whose_array_is_replaced_is_an_error_as_in_eager_steps(gpu):
    trainer = build(gpu)
    run_steps(trainer, 4)
    parameter = trainer.model.parameters()[0]
    with working_on(Device.parse(gpu)):
        parameter.data = parameter.data * 2
    with pytest.raises(GraphError, match="was replaced after the optimizer was built"):
        run_steps(trainer, 1)


def test_a_rate_that_is_no_rate_is_an_error_as_in_eager_steps(gpu):
    trainer = build(gpu)
    run_steps(trainer, 4)
    trainer.optimizer.lr = -1.0
    with pytest.raises(ArgumentError, match="lr must not be negative"):
        run_steps(trainer, 1)


def test_a_hook_that_is_registered_later_runs(gpu):
    trainer, seen = build(gpu), []
    run_steps(trainer, 4)
    with trainer.model.layers[0].register_forward_hook(lambda *call: seen.append(1)):
        assert replayed(run_steps(trainer, 3)) == [0, 0, 0]
    assert seen == [1, 1, 1]
    with gpucnn.nn.observe(lambda *call: seen.append(2)):
        assert replayed(run_steps(trainer, 1)) == [0]
    assert seen.count(2) > 1


@pytest.mark.parametrize("kind", ["register_forward_pre_hook", "register_full_backward_hook"])
def test_other_hooks_that_are_registered_later_run(gpu, kind):
    trainer, seen = build(gpu), []
    run_steps(trainer, 4)
    handle = getattr(trainer.model.layers[0], kind)(lambda *call: seen.append(1))
    assert replayed(run_steps(trainer, 2)) == [0, 0]
    assert seen == [1, 1]
    handle.remove()


def test_a_tensor_of_one_element_that_is_replaced_by_an_equal_one_ends_the_replays(gpu):
    model = network()
    model.scale = gpucnn.tensor([2.0], device=gpu)
    trainer = build(gpu, model=model)
    assert replayed(run_steps(trainer, 5))[-1] == 1
    model.scale = gpucnn.tensor([2.0], device=gpu)
    assert replayed(run_steps(trainer, 1)) == [0]


def test_what_changes_again_and_again_ends_the_attempts(gpu, capsys):
    def after(trainer):
        trainer.optimizer.param_groups[0]["momentum"] *= 0.99

    states = []
    for graph in (False, True):
        trainer = build(gpu, graph)
        run_steps(trainer, 12, after)
        states.append(state(trainer))
    assert differences(*states) == []
    # A step that is captured is replayed once, before the next change
    assert "changes again and again: the optimizer's momentum" in trainer._guard.graph.reason
    assert capsys.readouterr().err.count("without a CUDA graph") == 1


@pytest.mark.parametrize("how", ["closure", "partial", "attribute"])
def test_a_change_of_what_the_loss_refers_to_counts(gpu, how):
    states = []
    for graph in (False, True):
        smoothing = 0.0
        if how == "closure":

            def loss(logits, labels):
                return ops.cross_entropy(logits, labels, label_smoothing=smoothing)  # noqa: B023

        elif how == "partial":
            loss = functools.partial(ops.cross_entropy, label_smoothing=0.0)
        else:

            def loss(logits, labels):
                return ops.cross_entropy(logits, labels, label_smoothing=loss.smoothing)  # noqa: B023

            loss.smoothing = 0.0

        trainer = build(gpu, graph, loss=loss)
        run_steps(trainer, 4)
        smoothing = 0.3
        if how == "partial":
            loss.keywords["label_smoothing"] = 0.3
        elif how == "attribute":
            loss.smoothing = 0.3
        counts = run_steps(trainer, 3)
        assert replayed(counts) == ([0, 1, 1] if graph else [0, 0, 0])
        states.append(state(trainer))
    assert differences(*states) == []


def test_batches_of_two_sizes_take_turns(gpu):
    trainer = build(gpu)
    trainer.model.train()
    found = batches(trainer, 2 * BATCHES)
    whole, small = ([b for b in found if len(b[1]) == size] for size in (BATCH, 2))
    counts = []
    for pair in zip(whole, small * 3, strict=False):
        for batch in pair:
            with cuda.count_launches() as launches:
                trainer.train_step(*batch)
            counts.append(launches["graph"])
    assert counts[:10] == [0, 0, 0, 0, 1, 0, 1, 0, 1, 0]


def test_batches_that_stay_smaller_are_captured_again(gpu):
    states = []
    for graph in (False, True):
        trainer = build(gpu, graph)
        run_steps(trainer, 4)
        small = [b for b in batches(trainer, 16 * BATCHES) if len(b[1]) == 2]
        counts = []
        for batch in small[:8]:
            with cuda.count_launches() as launches:
                trainer.train_step(*batch)
            counts.append(launches["graph"])
        assert counts == ([0] * 5 + [1, 1, 1] if graph else [0] * 8)
        states.append(state(trainer))
    assert differences(*states) == []


def test_a_change_at_the_wrong_moment_is_no_reason_to_give_up(gpu):
    """Between the step that is traced and the one that is captured."""
    states = []
    for graph in (False, True):
        trainer = build(gpu, graph)

        def after(trainer):
            if trainer.step == 2:
                trainer.model.layers[4].p = 0.5

        counts = run_steps(trainer, 6, after)
        assert replayed(counts) == ([0, 0, 0, 1, 1, 1] if graph else [0] * 6)
        states.append(state(trainer))
    assert differences(*states) == []


def test_after_an_error_in_a_replay_steps_are_captured_again(gpu, monkeypatch):
    trainer = build(gpu)
    run_steps(trainer, 4)
    with monkeypatch.context() as patched:
        patched.setattr(StepValues, "send", lambda values: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_steps(trainer, 1)
    assert replayed(run_steps(trainer, 3)) == [0, 1, 1]
