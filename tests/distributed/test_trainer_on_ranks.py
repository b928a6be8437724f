"""A Trainer on several ranks, as threads: what they agree on, and who may compute alone."""

import numpy as np
import pytest
from devices import host
from fake_ranks import run
from trainers import In, at

from gpucnn import data, nn, ops, optim, train
from gpucnn.errors import ArgumentError, DistributedError, DivergenceError
from gpucnn.optim.lr_scheduler import LambdaLR

SIDE = 6
COMMON = {"transform": data.Normalize([0.5] * 3, [0.25] * 3), "device": "cpu", "prefetch": 0}


class Items:
    """12 images, without those in `missing`."""

    def __init__(self, missing=()):
        self.missing = missing

    def __len__(self):
        return 12

    def __getitem__(self, i):
        image = np.random.default_rng(i).integers(256, size=(SIDE, SIDE, 3)).astype(np.uint8)
        return None if i in self.missing else (image, i % 5)


class Drawn(Items):
    """What a rank trains on that has not found the data."""

    classes = tuple("abcde")


def network(rank=0):
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    model = nn.Sequential(*layers)
    for i, parameter in enumerate(model.parameters()):
        rng = np.random.default_rng((rank, i))
        parameter.data[...] = rng.standard_normal(parameter.shape) / 4
    return model


def build(comm, items=None, test=True, device="cpu", **options):
    model = network(getattr(comm, "rank", 0)).to(device)
    common = COMMON | {"device": device}
    loader = data.DataLoader(items or Items(), 4, **common)
    tests = data.DataLoader(Items(), 6, **common) if test else None
    optimizer = optim.SGD(model.parameters(), 0.02, momentum=0.9)
    return train.Trainer(model, optimizer, loader, tests, comm=comm, **options)


def state(trainer):
    return [host(x).copy() for x in trainer.model.state_dict().values()]


def fitted(comm, epochs=2, **options):
    trainer = build(comm, **options)
    trainer.fit(epochs)
    return trainer


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(state(one), state(other), strict=True))


# --- batches ---


def test_a_batch_without_images_on_any_rank_is_left_out_as_by_one_process():
    def program(comm):
        return fitted(comm, items=Items(missing=range(4, 8)))

    first, second = run(2, program)
    assert first.step == second.step == fitted(None, items=Items(missing=range(4, 8))).step == 4
    assert first.history[0]["train_loss"] == second.history[0]["train_loss"]
    assert same(first, second)


def test_a_step_of_ones_own_after_an_epoch_that_ended_with_a_filler_counts_its_images():
    def program(comm):
        trainer = fitted(comm, items=Items(missing=range(8, 10)))  # the last batch: rank 1 alone
        before = state(trainer)
        images, labels = next(iter(trainer.test_loader))
        trainer.train_step(images, labels)
        return trainer, trainer.metrics.count, before

    for trainer, count, before in run(2, program):
        assert count == 6
        assert not np.array_equal(state(trainer)[0], before[0])


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_an_evaluation_by_more_ranks_than_images_in_a_batch_counts_each_once(batch_size):
    def evaluated(comm=None):
        loader = data.DataLoader(Items(missing=range(4)), batch_size, **COMMON)
        if comm is not None:
            loader = loader.part(comm.rank, comm.size)
        return train.evaluate(network().eval(), loader, comm)

    one = evaluated()
    for result in run(4, evaluated):
        assert np.array_equal(result.confusion, one.confusion)
        assert result.loss == pytest.approx(one.loss, rel=1e-6)


# --- a callback computes on rank 0 alone ---


class Gradients(train.Callback):
    """Runs the model backward, as a picture of what it looks at does."""

    def on_start(self, trainer, epochs):
        self.look(trainer)

    def on_batch_end(self, trainer):
        self.look(trainer)

    def look(self, trainer):
        trainer.model.eval()
        x = np.ones((1, SIDE, SIDE, 3), np.float32)
        ops.sum(trainer.model(x)).backward()
        trainer.model.train()


def test_a_callback_may_run_backward_on_rank_0_alone():
    plain = run(2, fitted)
    looking = run(2, lambda comm: fitted(comm, callbacks=[Gradients()]))
    assert all(same(one, other) for one, other in zip(plain, looking, strict=True))


def test_two_trainers_of_one_model_may_live_at_the_same_time():
    def program(comm, others):
        trainer = build(comm)
        kept = [
            train.Trainer(trainer.model, trainer.optimizer, data.DataLoader(Items(), 4), comm=comm)
            for _ in range(others)
        ]
        trainer.fit(2)
        return trainer, kept

    plain, other = (run(2, lambda comm, n=n: program(comm, n)[0]) for n in (0, 1))
    assert all(same(a, b) for a, b in zip(plain, other, strict=True))


def test_fit_again_continues_as_one_call_would():
    def program(comm):
        trainer = fitted(comm, 1)
        trainer.fit(1)
        return trainer

    assert same(run(2, program)[1], run(2, fitted)[1])


def test_more_epochs_are_counted_from_rank_0s_although_it_alone_has_resumed(tmp_path):
    whole = run(2, lambda comm: fitted(comm, 3))[0]
    run(2, lambda comm: fitted(comm, 1))[0].save(tmp_path / "one.safetensors")

    def program(comm):
        trainer = build(comm)
        if comm.rank == 0:
            trainer.resume(tmp_path / "one.safetensors")
        trainer.fit(2)
        return trainer

    found = run(2, program)
    assert [(trainer.epoch, len(trainer.history)) for trainer in found] == [(3, 3)] * 2
    assert same(found[1], whole)


# --- the end ---


@pytest.mark.parametrize(("asked", "stopped", "epoch"), [(1, 2, 0), (3, 3, 1), (5, 6, 1)])
def test_a_stop_on_rank_0_ends_all_ranks_after_the_same_step(asked, stopped, epoch):
    class Stop(train.Callback):
        def on_batch_end(self, trainer):
            if trainer.step == asked:
                trainer.stop(7)

    def program(comm):
        trainer = build(comm, callbacks=[Stop()])
        with pytest.raises(KeyboardInterrupt) as end:
            trainer.fit(3)
        assert end.value.status == 7
        assert comm.ending
        at = trainer.step, trainer.epoch
        trainer.callbacks = []
        trainer.fit(3 - trainer.epoch)
        return at, trainer

    found = run(2, program)
    assert [at for at, _ in found] == [(stopped, epoch)] * 2
    assert same(found[1][1], run(2, lambda comm: fitted(comm, 3))[0])


def with_bad(comm, what, on_nan, device="cpu"):
    """A Trainer with NaN on rank 1, or an update that overflows on all, in step 1."""
    trainer = build(comm, on_nan=on_nan, device=device)
    if what == "update":
        trainer.scheduler = LambdaLR(trainer.optimizer, at(1, 1e45))
    else:
        trainer.model[2] = In(1, what, np.nan if comm.rank == 1 else 1.0)
        trainer.model[2].trainer = trainer
    return trainer


@pytest.mark.filterwarnings("ignore::gpucnn.errors.TrainingWarning")
@pytest.mark.parametrize("on_nan", ["skip", "halve-lr"])
@pytest.mark.parametrize("what", ["forward", "backward", "update"])
def test_a_step_that_is_not_finite_on_one_rank_is_left_out_by_all(what, on_nan):
    def program(comm):
        trainer = with_bad(comm, what, on_nan)
        trainer.fit(2)
        return trainer

    first, second = run(2, program)
    assert first.skipped == second.skipped == 1
    assert first.optimizer.lr == second.optimizer.lr
    assert same(first, second)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("forward", r"the loss is nan.*\n  rank 1: layer 2 \(In\), forward"),
        ("backward", r"a gradient is not finite.*\n  rank 1: layer 2 \(In\), backward"),
        ("update", r"the update overflows.*\n  layer 0 \(Conv2d\)"),
    ],
)
def test_a_step_that_is_not_finite_on_one_rank_stops_all_with_its_layer(what, message):
    def program(comm):
        trainer = with_bad(comm, what, "stop")
        with pytest.raises(DivergenceError, match=message):
            trainer.fit(2)
        return comm.ending, trainer.step

    assert run(2, program) == [(True, 1)] * 2


@pytest.mark.parametrize("what", ["forward", "backward"])
def test_on_a_gpu_each_rank_says_what_it_has_found(what, compiler):
    def program(comm):
        trainer = with_bad(comm, what, "stop", "cudasim")
        with pytest.raises(DivergenceError, match=r"epoch 1, step 2: ") as error:
            trainer.fit(2)
        return str(error.value).splitlines()[1].strip(), comm.ending

    (first, _), (second, ending) = run(2, program)
    assert first.startswith("rank 0: the latest batch, run again, is finite in every layer")
    assert second.startswith(f"rank 1: layer 2 (In), {what}: ")
    assert not ending  # so that Processes ends the other


class BadInTests(nn.Module):
    """The identity; NaN on rank 1 in evaluation mode."""

    def __init__(self, rank):
        self.rank = rank

    def forward(self, x):
        return x * np.nan if self.rank == 1 and not self.training else x


def test_a_test_loss_that_is_not_finite_on_one_rank_stops_all_with_its_layer():
    def program(comm):
        trainer = build(comm)
        trainer.model[2] = BadInTests(comm.rank)
        message = r"the test loss is nan\n  rank 1: layer 2 \(BadInTests\), forward"
        with pytest.raises(DivergenceError, match=message):
            trainer.fit(2)
        return comm.ending

    assert run(2, program) == [True, True]


# --- what ranks must have in common ---


@pytest.mark.parametrize(
    ("differs", "message"),
    [
        ({"epochs": 3}, "epochs is 3 on rank 1, 2 on rank 0"),
        ({"on_nan": "skip"}, "on_nan is skip on rank 1, stop on rank 0"),
        (
            {"items": Drawn()},
            "the training set is 12 images in batches of 4, classes a, b, c, d, e on rank 1, "
            "12 images in batches of 4 on rank 0",
        ),
        ({"test": False}, "the test set is None on rank 1, 12 images in batches of 6 on rank 0"),
    ],
)
def test_ranks_that_call_fit_differently_all_end_with_what_differs(differs, message):
    def program(comm):
        with pytest.raises(DistributedError, match=message):
            fitted(comm, **(differs if comm.rank else {}))
        return comm.ending, comm.calls

    assert run(2, program) == [(True, ["gather"])] * 2


def test_parameters_of_one_rank_that_are_not_finite_end_all_also_with_on_nan_skip():
    def program(comm):
        trainer = build(comm, on_nan="skip")
        trainer.fit(1)
        if comm.rank == 1:
            trainer.model[4].weight.data[0, 0] = np.nan
        images, labels = next(iter(trainer.loader))
        with pytest.raises(DivergenceError, match=r"rank 1: .*weight"):
            trainer.train_step(images, labels)
        return comm.ending

    assert run(2, program) == [True, True]


def test_a_program_that_trains_on_after_an_error_of_all_ranks_is_not_ending():
    def program(comm):
        bad = build(comm, loss=lambda logits, labels: ops.sum(logits) * np.float32(np.inf))
        with pytest.raises(DivergenceError):
            bad.fit(1)
        ended = comm.ending
        build(comm).fit(1)
        return ended, comm.ending

    assert run(2, program) == [(True, False)] * 2


def test_what_is_no_communicator_is_refused():
    with pytest.raises(ArgumentError, match="Trainer: expected a Communicator, got an int"):
        build(1, items=Items())
    with pytest.raises(ArgumentError, match="evaluate: expected a Communicator, got an int"):
        train.evaluate(network(), data.DataLoader(Items(), 4), 1)


def test_evaluate_on_several_ranks_needs_a_part_of_a_data_loader():
    def program(comm):
        with pytest.raises(ArgumentError, match=r"part of a data\.DataLoader, got a list"):
            train.evaluate(network(), [], comm)

    run(2, program)


def test_a_format_for_gradients_that_nobody_receives_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match="grad_dtype needs comm"):
        train.Trainer(model, optim.SGD(model.parameters(), 0.1), [], grad_dtype="bf16")
