"""Divergence: when training stops, the message, and the state it leaves."""

import gc
import sys
import weakref

import numpy as np
import pytest
from trainers import STEPS, at, build, network

import gpucnn
from gpucnn import nn, ops, optim, train
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, DivergenceError
from gpucnn.train.divergence import StepWatch
from gpucnn.train.replay import replay


def state(trainer):
    return {name: array.copy() for name, array in trainer.model.state_dict().items()}


class Keep(train.Callback):
    """Record the model's state before the first step and after every step."""

    def __init__(self):
        self.states = []

    def on_start(self, trainer, epochs):
        self.states = [state(trainer)]

    def on_batch_end(self, trainer):
        self.states.append(state(trainer))


# --- on the CPU: at the step itself ---


def test_training_stops_at_the_first_step_whose_loss_is_not_finite_before_its_update():
    keep, batches = Keep(), []
    trainer = build(lr=1e9, callbacks=[keep])
    step = trainer.train_step

    def watched(images, labels):
        batches.append((images, labels))
        step(images, labels)

    trainer.train_step = watched
    with pytest.raises(DivergenceError) as caught:
        trainer.fit(2)
    # The expected losses: each batch's, computed with the state before its step.
    losses = []
    with gpucnn.no_grad(), np.errstate(all="ignore"):
        for before, (images, labels) in zip(keep.states, batches, strict=True):
            model = network()
            model.load_state_dict(before)
            losses.append(ops.cross_entropy(model(images), labels).item())
            x, first = images, None
            for i, layer in enumerate(model):
                x = layer(x)
                if first is None and not np.isfinite(x.numpy()).all():
                    first = i
    finite = np.isfinite(losses).tolist()
    assert finite == [True] * (len(losses) - 1) + [False]
    assert trainer.step == len(losses) - 1
    for name, array in state(trainer).items():
        assert np.array_equal(array, keep.states[-1][name])
        assert np.isfinite(array).all()
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        f"epoch 1, step {len(losses)}: the loss is {losses[-1]}, at a learning rate of 1e+09"
    )
    layer = type(model[first]).__name__
    found = f"the result of {layer.lower()} is the first that is not finite"
    assert lines[1] == f"  layer {first} ({layer}), forward: {found}"
    assert "lower learning rate" in lines[2]


def test_the_message_counts_steps_over_all_epochs_and_gives_the_schedulers_rate():
    trainer = build(lr=at(STEPS, 1e20))
    with pytest.raises(DivergenceError, match=rf"^epoch 2, step {STEPS + 2}: .* rate of 0\.01\n"):
        trainer.fit(2)


def test_the_first_module_in_the_order_of_the_forward_pass_is_named():
    class Backwards(nn.Module):
        """Its layers run in a different order from their assignment."""

        def __init__(self):
            self.last = nn.Linear(20, 10)
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(3072, 20))

        def forward(self, x):
            return self.last(self.inner(x))

    trainer = build(model=Backwards())
    for parameter in trainer.model.parameters():
        parameter.data[...] = np.nan
    with pytest.raises(
        DivergenceError, match=r"layer inner\.1 \(Linear\): its parameter weight is not"
    ):
        trainer.fit(1)


def test_values_computed_outside_layers_are_attributed_to_the_enclosing_module():
    class Overflowing(nn.Module):
        def __init__(self):
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))

        def forward(self, x):
            return self.body(x) * 1e38 * 1e38

    with pytest.raises(
        DivergenceError, match=r"layer outermost \(Overflowing\), forward: the result of multiply"
    ):
        build(model=Overflowing()).fit(1)


def test_images_that_are_not_finite_are_named():
    trainer = build()
    transform = trainer.loader.transform
    trainer.loader.transform = lambda images, generator: transform(images, generator) * np.nan
    with pytest.raises(DivergenceError, match="images of the batch are not finite"):
        trainer.fit(1)


def test_a_loss_function_that_returns_nan_for_finite_outputs_is_named():
    trainer = build(loss=lambda logits, labels: ops.sum(logits) * float("nan"))
    with pytest.raises(
        DivergenceError, match="loss function, forward: the result of multiply is the first"
    ):
        trainer.fit(1)


# --- in the last step, after which no loss is computed ---


def test_an_update_that_overflows_in_the_last_step_of_an_epoch_is_detected(tmp_path):
    callbacks = [train.Checkpoints(tmp_path)]
    trainer = build(lr=at(2 * STEPS - 1, 1e39), callbacks=callbacks, test=False)
    with pytest.raises(DivergenceError, match=rf"epoch 2, step {2 * STEPS}: the update overflows"):
        trainer.fit(3)
    for name in ("last", "best"):
        checkpoint = train.read_checkpoint(tmp_path / f"{name}.safetensors")
        assert checkpoint.info["epoch"] == 1
        assert all(np.isfinite(array).all() for array in checkpoint.tensors.values())


def test_a_test_loss_that_is_not_finite_is_detected_and_nothing_is_written(tmp_path):
    callbacks = [train.Checkpoints(tmp_path)]
    trainer = build(lr=at(2 * STEPS - 1, 1e25), callbacks=callbacks)
    with pytest.raises(DivergenceError, match=r"epoch 2, step 8: the test loss is nan\n  layer \d"):
        trainer.fit(3)
    assert all(np.isfinite(array).all() for array in state(trainer).values())
    assert train.read_checkpoint(tmp_path / "last.safetensors").info["epoch"] == 1
    assert np.isfinite(trainer.evaluation.loss)
    assert len(trainer.history) == 1


# --- checkpoints ---


def test_checkpoints_after_every_step_are_all_finite(tmp_path):
    trainer = build(lr=at(2, 1e20), callbacks=[train.Checkpoints(tmp_path, every=1)])
    with pytest.raises(DivergenceError, match="epoch 1, step 4"):
        trainer.fit(1)
    checkpoint = train.read_checkpoint(tmp_path / "last.safetensors")
    assert checkpoint.info["step"] == 3
    assert all(np.isfinite(array).all() for array in checkpoint.tensors.values())


@pytest.mark.parametrize("what", ["parameter", "statistic", "velocity"])
def test_saving_refuses_values_that_are_not_finite_and_keeps_the_file(what, tmp_path):
    trainer = build(model=nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.BatchNorm1d(10)))
    trainer.optimizer = optim.SGD(trainer.model.parameters(), 0.01, momentum=0.9)
    path = tmp_path / "a.safetensors"
    trainer.save(path)
    before = path.read_bytes()
    array, message = {
        "parameter": (
            trainer.model[1].weight.data,
            r"layer 1 \(Linear\): its parameter weight is not",
        ),
        "statistic": (
            trainer.model[2].running_var.data,
            r"layer 2 \(BatchNorm1d\): its running_var",
        ),
        "velocity": (trainer.optimizer.state_dict()["velocity"], "SGD: its velocity is not finite"),
    }[what]
    array.reshape(-1)[3] = np.inf
    with pytest.raises(DivergenceError, match=rf"a\.safetensors not written: .*\n  {message}"):
        trainer.save(path)
    assert path.read_bytes() == before


def test_a_mask_of_infinities_is_not_divergence(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    model.mask = gpucnn.tensor(np.full((10, 10), -np.inf, np.float32))
    trainer = build(model=model)
    trainer.fit(1)
    trainer.save(tmp_path / "a.safetensors")


def test_a_run_that_diverged_resumes_from_its_checkpoint_at_a_lower_rate(tmp_path):
    trainer = build(lr=at(STEPS + 1, 1e20), callbacks=[train.Checkpoints(tmp_path)])
    with pytest.raises(DivergenceError, match="epoch 2, step 7"):
        trainer.fit(3)
    trainer.resume(tmp_path / "last.safetensors")
    trainer.scheduler, trainer.optimizer.lr = None, 0.01
    trainer.fit(2)
    whole = build()
    whole.fit(3)
    expected = whole.model.state_dict()
    assert all(np.array_equal(expected[name], array) for name, array in state(trainer).items())


# --- a replay restores the state ---


def test_a_replay_does_not_change_statistics_generators_or_gradients(rng):
    own = np.random.default_rng(3)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Dropout(0.5, own), nn.Linear(6, 2)
    )
    x = gpucnn.tensor(rng.standard_normal((5, 4), dtype=np.float32))
    labels = gpucnn.tensor(np.zeros(5, np.int64))
    before = {name: array.copy() for name, array in model.state_dict().items()}
    generators = repr((gpucnn.random.get_state(), own.bit_generator.state))
    assert replay(model, x, labels) == ""
    assert repr((gpucnn.random.get_state(), own.bit_generator.state)) == generators
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())
    assert [p.grad for p in model.parameters()] == [None] * len(model.parameters())
    assert all(module.training for _, module in model.named_modules())


def test_an_error_calls_on_error_and_closes_the_bar(capsys, monkeypatch):
    heard = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    class Listen(train.Callback):
        def on_error(self, trainer):
            heard.append(trainer.step)

    trainer = build(lr=at(1, 1e20), callbacks=[train.ProgressBar(), Listen()])
    with pytest.raises(DivergenceError):
        trainer.fit(1)
    assert heard == [2]
    assert capsys.readouterr().err.endswith("\r")  # the bar has been erased


# --- on a GPU: as soon as the loss has arrived ---


def test_a_gpu_stops_too_and_names_the_step_and_a_layer(gpu, tmp_path):
    callbacks = [train.Checkpoints(tmp_path, every=1)]
    trainer = build(lr=at(1, 1e20), callbacks=callbacks, device=gpu)
    with pytest.raises(DivergenceError, match=r"^epoch 1, step 3: the loss is .*\n  layer \d"):
        trainer.fit(1)
    checkpoint = train.read_checkpoint(tmp_path / "last.safetensors")
    assert checkpoint.info["step"] == 2
    assert all(np.isfinite(array).all() for array in checkpoint.tensors.values())


def test_a_trainers_step_does_not_wait_for_its_loss(compiler):
    trainer = build(device="cudasim")
    counters = Device.parse("cudasim").xp.cuda.counters
    for number, (images, labels) in enumerate(trainer.loader):
        before = counters.host_syncs
        trainer.train_step(images, labels)
        assert number == 0 or counters.host_syncs == before


@pytest.fixture
def late(compiler, monkeypatch):
    """Simulate a device that is far behind: an event is done only after a wait for it."""
    passed = weakref.WeakSet()
    event = Device.parse("cudasim").xp.cuda.Event
    synchronize, record = event.synchronize, event.record

    def wait(self):
        passed.add(self)
        synchronize(self)

    def again(self, *stream):
        passed.discard(self)
        record(self, *stream)

    monkeypatch.setattr(event, "synchronize", wait)
    monkeypatch.setattr(event, "record", again)
    monkeypatch.setattr(event, "done", property(lambda self: self in passed))


def test_a_loss_that_arrives_late_is_reported_at_the_end_of_the_epoch_with_its_step(late):
    keep = Keep()
    trainer = build(lr=at(0, 1e20), callbacks=[keep], device="cudasim", test=False)
    with pytest.raises(DivergenceError, match=r"^epoch 1, step 2: the loss is nan"):
        trainer.fit(1)
    assert trainer.step == STEPS


def test_a_loss_that_arrives_late_is_detected_before_a_checkpoint_is_written(late, tmp_path):
    callbacks = [train.Checkpoints(tmp_path, every=3)]
    trainer = build(lr=at(0, 1e20), callbacks=callbacks, device="cudasim")
    with pytest.raises(DivergenceError, match=r"^epoch 1, step 2: the loss is nan"):
        trainer.fit(1)
    assert trainer.step == 3
    assert not list(tmp_path.iterdir())


def test_a_resume_drops_the_pending_losses(late, tmp_path):
    trainer = build(lr=at(0, 1e20), device="cudasim", test=False)
    trainer.save(tmp_path / "start.safetensors")
    with pytest.raises(DivergenceError, match="epoch 1, step 2"):
        trainer.fit(1)
    trainer.resume(tmp_path / "start.safetensors")
    trainer.scheduler, trainer.optimizer.lr = None, 0.01
    assert np.isfinite(trainer.fit(1)[0]["train_loss"])


def one_parameter():
    """An optimizer on the simulated device, whose parameter has a gradient."""
    parameter = gpucnn.tensor([1.0], device="cudasim", requires_grad=True)
    parameter.grad = parameter.data * 0
    return optim.SGD([parameter], 0.1)


def test_at_most_64_losses_are_pending(late):
    xp = Device.parse("cudasim").xp
    watch, optimizer = StepWatch(), one_parameter()
    for step in range(300):
        loss = xp.asarray(np.float32(np.nan if step == 150 else step))
        watch.send(0.1, step, loss, watch.update(optimizer))
        bad = watch.first()
        if bad is not None:
            break
        assert len(watch._readback.pending) < 64
    assert (bad.step, bad.lr) == (150, 0.1)
    assert step == 150 + 63
    assert len(watch._readback.free) + len(watch._readback.pending) == 64


def test_a_deleted_watch_waits_for_pending_copies(late):
    gc.collect()  # watches of other tests
    cuda = Device.parse("cudasim").xp.cuda
    watch = StepWatch()
    loss = Device.parse("cudasim").xp.asarray(np.float32(1))
    watch.send(1.0, 0, loss, watch.update(one_parameter()))
    before = cuda.counters.host_syncs
    del watch
    gc.collect()
    assert cuda.counters.host_syncs == before + 1


def test_labels_that_a_gpu_cannot_check_are_named_once_the_loss_is_nan(gpu):
    trainer, there = build(device=gpu), Device.parse(gpu)
    images = gpucnn.tensor(np.zeros((2, 32, 32, 3), np.float32), device=gpu)
    labels = gpucnn.tensor(np.array([3, 10]), device=gpu)

    def two_steps():
        for _ in range(2):
            trainer.train_step(images, labels)
            there.xp.cuda.Device(there.index).synchronize()

    with pytest.raises(ArgumentError, match=r"labels must be in 0\.\.9, got 3\.\.10"):
        two_steps()
