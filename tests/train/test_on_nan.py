"""Steps that are not finite: noticed at once, named by layer and operation, skipped or halved."""

import warnings
import weakref

import numpy as np
import pytest
from trainers import STEPS, assert_equal_states, at, build, trainer_with, whole_state

from gpucnn import nn, ops, optim, train
from gpucnn.errors import ArgumentError, DivergenceError, TrainingWarning
from gpucnn.optim.lr_scheduler import StepLR


def test_an_unknown_policy_is_refused():
    with pytest.raises(ArgumentError, match="on_nan='ignore' is unknown; expected 'stop', 'skip'"):
        build(on_nan="ignore")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "forward",
            r"step 3: the loss is nan.*\n  layer 3 \(In\), forward: the result of multiply",
        ),
        (
            "backward",
            r"step 3: a gradient is not finite, while the loss is \d.*\n  layer 3 \(In\), backward:"
            " the gradient of its input in bad_gradient is the first",
        ),
    ],
)
def test_a_bad_value_stops_at_its_step_before_the_update(what, message):
    states = []

    class Keep(train.Callback):
        def on_batch_end(self, trainer):
            states.append(whole_state(trainer))

    trainer = trainer_with(2, what, callbacks=[Keep()])
    with pytest.raises(DivergenceError, match=message):
        trainer.fit(1)
    assert trainer.step == len(states) == 2
    assert_equal_states(whole_state(trainer), states[-1])


def test_the_gradient_of_a_parameter_is_named():
    class Large(nn.Module):
        def forward(self, x):
            return x * 1e25

    model = nn.Sequential(nn.Flatten(), Large(), nn.Linear(3072, 10))
    model[2].weight.data *= 1e-26
    trainer = build(model=model, loss=lambda logits, labels: ops.sum(logits) * 1e15)
    message = (
        r"layer 2 \(Linear\), backward: the gradient of parameter weight in linear is the first"
    )
    with pytest.raises(DivergenceError, match=message):
        trainer.fit(1)


@pytest.mark.parametrize("what", ["forward", "backward"])
@pytest.mark.parametrize("device", ["cpu", "cudasim"])
def test_a_skipped_step_leaves_parameters_states_and_statistics_as_they_were(
    what, device, compiler
):
    states = []

    class Keep(train.Callback):
        def on_batch_end(self, trainer):
            states.append(whole_state(trainer))

    trainer = trainer_with(2, what, on_nan="skip", callbacks=[Keep()], device=device)
    with pytest.warns(TrainingWarning, match=r"layer 3 \(In\), " + what):
        trainer.fit(1)
    assert_equal_states(states[1], states[2])
    assert trainer.step == STEPS
    assert trainer.optimizer.steps == STEPS - 1
    assert trainer.skipped == 1
    assert all(np.isfinite(array).all() for array in states[-1][0].values())
    assert np.isfinite(trainer.history[0]["train_loss"])


def test_a_run_warns_once_and_counts_the_rest():
    trainer = trainer_with(1, on_nan="skip")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(1)
        trainer.model[3].step = STEPS + 2
        trainer.fit(1)
    assert len(said) == 1
    assert trainer.skipped == 2


def test_fifty_skipped_steps_in_a_row_stop_training():
    trainer = build(loss=lambda logits, labels: ops.sum(logits) * float("nan"), on_nan="skip")
    images, labels = next(iter(trainer.loader))
    with pytest.warns(TrainingWarning):
        trainer.train_step(images, labels)
    for _ in range(49):
        trainer.train_step(images, labels)
    with pytest.raises(DivergenceError, match="50 steps in a row before it were left out"):
        trainer.train_step(images, labels)


def test_an_epoch_without_a_good_step_stops_training():
    trainer = build(loss=lambda logits, labels: ops.sum(logits) * float("nan"), on_nan="skip")
    with (
        pytest.warns(TrainingWarning),
        pytest.raises(DivergenceError, match="epoch 1: no step was finite"),
    ):
        trainer.fit(1)


def test_parameters_that_are_not_finite_stop_training_whatever_the_policy():
    trainer = build(on_nan="skip")
    trainer.model[0].weight.data[0] = np.nan
    with pytest.raises(DivergenceError, match=r"layer 0 \(Conv2d\): its parameter weight is not"):
        trainer.fit(1)


def test_halving_lowers_every_groups_rate_for_the_rest_of_the_run_under_a_scheduler_too():
    rates = []

    class Rates(train.Callback):
        def on_batch_end(self, trainer):
            rates.append([group["lr"] for group in trainer.optimizer.param_groups])

    trainer = trainer_with(2, on_nan="halve-lr", callbacks=[Rates()])
    first, *others = trainer.model.parameters()
    groups = [{"params": [first], "lr": 0.04}, {"params": others, "lr": 0.01}]
    trainer.optimizer = optim.SGD(groups, momentum=0.9)
    trainer.scheduler = StepLR(trainer.optimizer, 5, gamma=0.1)
    with pytest.warns(TrainingWarning, match="the learning rate halved"):
        trainer.fit(2)
    expected = [[0.04, 0.01]] * 2 + [[0.02, 0.005]] * 2 + [[0.002, 0.0005]] * 4
    assert np.allclose(rates, expected)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("stop", [3, 5])
def test_a_halved_rate_survives_a_resume_to_the_same_bits(scheduled, stop, tmp_path):
    class Save(train.Callback):
        def on_batch_end(self, trainer):
            if trainer.step == stop:
                trainer.save(tmp_path / "a.safetensors")

    def make(*callbacks):
        trainer = trainer_with(2, on_nan="halve-lr", callbacks=callbacks)
        if scheduled:
            trainer.scheduler = StepLR(trainer.optimizer, 4, gamma=0.1)
        return trainer

    whole = make(Save())
    with pytest.warns(TrainingWarning):
        whole.fit(3)
    again = make()
    again.resume(tmp_path / "a.safetensors")
    assert again.skipped == 1
    again.fit(3 - again.epoch)
    assert_equal_states(whole_state(whole), whole_state(again))
    assert whole.optimizer.lr == again.optimizer.lr


def test_ten_halvings_without_a_good_step_stop_training():
    trainer = build(loss=lambda logits, labels: ops.sum(logits) * float("nan"), on_nan="halve-lr")
    trainer.scheduler = None
    images, labels = next(iter(trainer.loader))
    with pytest.warns(TrainingWarning):
        trainer.train_step(images, labels)
    for _ in range(9):
        trainer.train_step(images, labels)
    assert trainer.optimizer.lr == 0.01 / 1024
    with pytest.raises(DivergenceError, match="10 steps in a row"):
        trainer.train_step(images, labels)


def test_halving_rescues_a_run_whose_update_overflows():
    trainer = build(lr=at(2, 1e39), on_nan="halve-lr")
    with pytest.warns(TrainingWarning, match="the update overflows, at a learning rate of 1e\\+39"):
        trainer.fit(2)
    assert np.isfinite(trainer.history[1]["train_loss"])
    assert trainer.optimizer.lr == 0.005


@pytest.mark.parametrize("make", [optim.Adam, optim.AdamW])
def test_an_infinite_second_moment_is_noticed_although_the_parameters_stay_finite(make):
    trainer = build(lr=1e-3, loss=lambda logits, labels: ops.cross_entropy(logits, labels) * 1e25)
    trainer.optimizer = make(trainer.model.parameters(), 1e-3)
    trainer.scheduler = None
    with pytest.raises(
        DivergenceError, match="the square of its parameter weight would not be fin"
    ):
        trainer.fit(1)
    assert trainer.step == 0
    assert not trainer.optimizer.state_dict()["counts"].any()


def test_a_gpu_notices_a_gradient_that_is_not_finite_and_keeps_finite_parameters(gpu):
    trainer = trainer_with(2, "backward", device=gpu)
    with pytest.raises(DivergenceError, match=r"a gradient is not finite, or the update overflows"):
        trainer.fit(1)
    state, _ = whole_state(trainer)
    assert all(np.isfinite(array).all() for array in state.values())


def test_a_deleted_trainer_is_freed_at_once():
    trainer = build()
    trainer.fit(1)
    model = weakref.ref(trainer.model)
    del trainer
    assert model() is None


def test_an_update_that_overflows_leaves_the_running_statistics_as_they_were():
    states = []

    class Keep(train.Callback):
        def on_batch_end(self, trainer):
            trainer.optimizer.lr = 1e39 if trainer.step == 1 else 0.01
            states.append(whole_state(trainer))

    trainer = trainer_with(-1, on_nan="skip", callbacks=[Keep()])
    with pytest.warns(TrainingWarning, match="the update overflows"):
        trainer.fit(1)
    assert_equal_states(states[0], states[1])


def test_the_step_runs_again_with_the_same_dropout():
    class Seen(nn.Module):
        def __init__(self):
            self.outputs = []

        def forward(self, x):
            self.outputs.append(x.numpy().copy())
            return x * np.nan

    seen = Seen()
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), seen, nn.Linear(3072, 10))
    with pytest.raises(DivergenceError, match=r"layer 2 \(Seen\), forward: the result of multiply"):
        build(model=model).fit(1)
    first, again = seen.outputs
    assert np.array_equal(first, again)
