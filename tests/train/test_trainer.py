import csv
import math
import sys
import threading
import time

import numpy as np
import pytest

import gpucnn
from gpucnn import data, nn, ops, optim, train
from gpucnn.errors import ArgumentError, CheckpointError, DivergenceError
from gpucnn.optim import lr_scheduler


def build(seed=0, n=60, batch_size=8, p=0.3, callbacks=(), own_generator=False):
    """A small network with dropout and batch normalisation, and a Trainer on synthetic images."""
    gpucnn.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.Dropout(p, np.random.default_rng(seed) if own_generator else None),
        nn.Linear(100, 10),
    )
    images = data.Synthetic(n=n, seed=1)
    normalize = data.Normalize(*data.channel_statistics(images.images))
    loader = data.DataLoader(
        images,
        batch_size,
        shuffle=True,
        transform=data.Compose(
            [data.RandomCrop(32, padding=2), data.RandomHorizontalFlip(), normalize]
        ),
        seed=seed,
        device="cpu",
    )
    test_loader = data.DataLoader(images, 25, transform=normalize, device="cpu")
    optimizer = optim.SGD(model.parameters(), 0.02, 0.9, nesterov=True)
    scheduler = lr_scheduler.TriangularLR(optimizer, 3 * len(loader))
    return train.Trainer(
        model, optimizer, loader, test_loader, scheduler, callbacks=callbacks, info={"note": "x"}
    )


class StopAt(train.Callback):
    def __init__(self, step):
        self.step = step

    def on_batch_end(self, trainer):
        if trainer.step == self.step:
            trainer.stop()


def parameters(trainer):
    return {name: array.copy() for name, array in trainer.model.state_dict().items()}


def without_times(history):
    return [
        {k: v for k, v in row.items() if "second" not in k and k != "step_ms"} for row in history
    ]


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("stop", [1, 5, 8, 13, 16, 23])
def test_a_run_that_was_stopped_ends_with_the_same_bits_as_one_that_was_not(
    stop, own_generator, tmp_path
):
    whole = build(own_generator=own_generator)
    whole.fit(3)
    first = build(
        callbacks=[train.Checkpoints(tmp_path), StopAt(stop)], own_generator=own_generator
    )
    with pytest.raises(KeyboardInterrupt):
        first.fit(3)
    assert first.step == stop
    first.callbacks = []
    first.fit(3 - first.epoch)  # continues in the same process
    second = build(seed=99, own_generator=own_generator)  # everything comes from the checkpoint
    second.resume(tmp_path / "last.safetensors")
    assert second.step == stop
    second.fit(3 - second.epoch)
    for other in (first, second):
        for name, value in parameters(whole).items():
            assert np.array_equal(value, other.model.state_dict()[name]), name
        assert without_times(whole.history) == without_times(other.history)


class Clock:
    """A clock that advances only in training steps, by ten seconds each."""

    def __init__(self, monkeypatch):
        self.now = 500.0
        monkeypatch.setattr("gpucnn.train.trainer.time", self)
        monkeypatch.setattr("gpucnn.cuda.timer.time", self)

    def perf_counter(self):
        return self.now

    def follow(self, trainer):
        step = trainer.train_step

        def ten_seconds(images, labels):
            step(images, labels)
            self.now += 10

        trainer.train_step = ten_seconds
        return trainer


@pytest.mark.parametrize("later", ["from the checkpoint", "in the same process"])
def test_the_time_of_an_epoch_excludes_the_pause_before_a_resume(later, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    trainer = clock.follow(build(callbacks=[train.Checkpoints(tmp_path), StopAt(3)]))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(2)
    assert train.read_checkpoint(tmp_path / "last.safetensors").info["seconds"] == 30
    clock.now += 1000
    if later == "from the checkpoint":
        trainer = clock.follow(build())
        trainer.resume(tmp_path / "last.safetensors")
    rows = trainer.fit(2)
    assert [row["seconds"] for row in rows] == [80, 80]  # 60 images in batches of 8
    assert [row["images_per_second"] for row in rows] == [60 / 80, 60 / 80]
    assert [row["step_ms"] for row in rows] == [10_000, 10_000]


def test_every_epoch_trains_in_training_mode_whatever_the_models_mode():
    modes = []

    class Look(train.Callback):
        def on_batch_end(self, trainer):
            modes.append({module.training for _, module in trainer.model.named_modules()})

        def on_epoch_end(self, trainer):
            trainer.model.eval()

    trainer = build(n=16, callbacks=[Look()])
    trainer.model.eval()
    trainer.fit(3)
    assert modes == [{True}] * 6


def test_training_learns_and_the_history_records_it(tmp_path):
    trainer = build(n=40, p=0.0, callbacks=[train.MetricsFile(tmp_path / "metrics.csv")])
    trainer.scheduler, trainer.optimizer.lr = None, 0.02
    history = trainer.fit(25)
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert history[-1]["test_accuracy"] == trainer.evaluation.accuracy > 0.6
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = "epoch train_loss train_accuracy test_loss test_accuracy lr seconds images_per_second"
    assert list(rows[0]) == [*columns.split(), "step_ms"]
    assert float(rows[0]["step_ms"]) > 0
    assert [int(row["epoch"]) for row in rows] == list(range(1, 26))
    assert float(rows[-1]["train_accuracy"]) == history[-1]["train_accuracy"]
    assert 0 <= float(rows[0]["train_accuracy"]) <= 1


def test_the_metrics_of_an_epoch_are_those_of_its_batches():
    losses, hits, count = [], 0, 0

    class Watch(train.Callback):
        def on_epoch_end(self, trainer):
            assert trainer.metrics.count == 0

    trainer = build(n=30, callbacks=[Watch()])
    step = trainer.train_step

    def watched(images, labels):
        nonlocal hits, count
        before = trainer.metrics.state_dict()
        step(images, labels)
        after = trainer.metrics.state_dict()
        losses.append((after["loss"] - before["loss"]) / len(labels))
        hits += after["correct"] - before["correct"]
        count += len(labels)

    trainer.train_step = watched
    row = trainer.fit(1)[0]
    assert count == 30
    assert row["train_accuracy"] == hits / 30
    sizes = [8, 8, 8, 6]
    assert row["train_loss"] == pytest.approx(np.average(losses, weights=sizes))


def test_running_metrics_are_the_sums_over_all_batches():
    metrics = train.RunningMetrics()
    for loss, correct in ((1.0, 3), (2.0, 3), (6.0, 1)):  # each batch has four examples
        logits = np.zeros((4, 2), np.float32)
        logits[:correct, 1] = 1
        labels = np.ones(4, np.int64)
        metrics.add(*map(gpucnn.tensor, (np.float32(loss), logits, labels)))
    assert metrics.state_dict() == {"count": 12, "loss": 36.0, "correct": 7}
    assert (metrics.loss, metrics.accuracy) == (3.0, 7 / 12)


def test_evaluation_records_nothing_and_keeps_modes_and_statistics():
    trainer = build()
    trainer.model[5].training = False
    mean = trainer.model[1].running_mean.data.copy()
    seen = []
    with nn.observe(lambda module, inputs, output: seen.append(output.requires_grad)):
        result = train.evaluate(trainer.model, trainer.test_loader)
    assert not any(seen)
    assert [m.training for m in trainer.model] == [True] * 5 + [False, True]
    assert np.array_equal(trainer.model[1].running_mean.data, mean)
    assert result.confusion.sum() == 60
    assert result.confusion.sum(axis=1).tolist() == [6] * 10
    assert result.accuracy == pytest.approx(result.per_class.mean())


def test_evaluation_equals_values_computed_by_hand():
    class Fixed(nn.Module):
        def forward(self, x):
            return x

    logits = gpucnn.tensor([[5.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    labels = gpucnn.tensor([0, 1, 1])
    result = train.evaluate(Fixed(), [(logits, labels)])
    assert result.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.per_class[:2].tolist() == [1, 0.5]
    assert math.isnan(result.per_class[2])
    expected = ops.cross_entropy(logits, labels).item()
    assert result.loss == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ArgumentError, match="no batch"):
        train.evaluate(Fixed(), [])


def test_best_is_the_epoch_with_the_highest_test_accuracy(tmp_path):
    trainer = build(callbacks=[train.Checkpoints(tmp_path)])
    history = trainer.fit(4)
    best = train.read_checkpoint(tmp_path / "best.safetensors").info["history"]
    accuracies = [row["test_accuracy"] for row in history]
    assert len(best) == accuracies.index(max(accuracies)) + 1
    assert len(train.read_checkpoint(tmp_path / "last.safetensors").info["history"]) == 4


def test_checkpoints_every_n_steps(tmp_path):
    steps = []

    class Look(train.Callback):
        def on_batch_end(self, trainer):
            path = tmp_path / "last.safetensors"
            steps.append(train.read_checkpoint(path).info["step"] if path.exists() else 0)

    build(callbacks=[train.Checkpoints(tmp_path, every=3), Look()]).fit(1)
    assert steps == [0, 0, 3, 3, 3, 6, 6, 6]


def test_the_trainer_works_outside_the_main_thread():
    trainer = build(n=16)
    thread = threading.Thread(target=trainer.fit, args=(1,))
    thread.start()
    thread.join()
    assert trainer.epoch == 1


def test_resuming_with_another_optimizer_or_generators_is_refused(tmp_path):
    path = tmp_path / "last.safetensors"
    build().save(path)
    other = build()
    other.optimizer = optim.Adam(other.model.parameters())
    with pytest.raises(CheckpointError, match="trained with SGD, the trainer has Adam"):
        other.resume(path)
    with pytest.raises(CheckpointError, match="generators differ from the run's"):
        build(own_generator=True).resume(path)
    with pytest.raises(CheckpointError, match="batch_size"):
        build(batch_size=4).resume(path)


def test_resuming_with_another_scheduler_is_refused(tmp_path):
    path = tmp_path / "last.safetensors"
    build().save(path)
    other = build()
    other.scheduler = None
    message = "trained with TriangularLR, the trainer has no scheduler"
    with pytest.raises(CheckpointError, match=message):
        other.resume(path)
    other.save(path)
    with pytest.raises(CheckpointError, match="no scheduler, the trainer has TriangularLR"):
        build().resume(path)


def test_a_scheduler_is_stepped_once_per_training_step_and_the_history_has_the_last_rate():
    used = []

    class Look(train.Callback):
        def on_batch_end(self, trainer):
            used.append(trainer.scheduler.last_epoch)

    trainer = build(n=24, callbacks=[Look()])  # 3 steps in each of 2 epochs, of 9 planned
    history = trainer.fit(2)
    assert used == [1, 2, 3, 4, 5, 6]
    oracle = build(n=24)
    rates = []
    for _ in range(6):
        rates.append(oracle.optimizer.lr)
        oracle.scheduler.step()
    assert [row["lr"] for row in history] == [rates[2], rates[5]]
    assert trainer.optimizer.lr == oracle.optimizer.lr


def test_parameter_groups_are_trained_at_their_own_rates_and_resumed(tmp_path):
    def grouped():
        trainer = build(n=16)
        body, last = trainer.model[:6].parameters(), trainer.model[6].parameters()
        trainer.optimizer = optim.SGD([{"params": body, "lr": 0.0}, {"params": last}], lr=0.02)
        trainer.scheduler = lr_scheduler.StepLR(trainer.optimizer, 3)
        return trainer

    trainer = grouped()
    before = parameters(trainer)
    trainer.fit(1)
    assert np.array_equal(parameters(trainer)["0.weight"], before["0.weight"])
    assert not np.array_equal(parameters(trainer)["6.weight"], before["6.weight"])
    trainer.save(tmp_path / "last.safetensors")
    trainer.fit(1)
    again = grouped()
    again.resume(tmp_path / "last.safetensors")
    again.fit(1)
    ours = parameters(again)
    assert all(np.array_equal(value, ours[name]) for name, value in parameters(trainer).items())
    other = build()
    other.scheduler = lr_scheduler.StepLR(other.optimizer, 3)
    with pytest.raises(CheckpointError, match="expected 1 group of 6 parameters, got 2 groups of"):
        other.resume(tmp_path / "last.safetensors")


def test_a_scheduler_of_another_optimizer_is_refused():
    trainer = build()
    with pytest.raises(ArgumentError, match="the scheduler belongs to another optimizer"):
        train.Trainer(trainer.model, trainer.optimizer, trainer.loader, scheduler=build().scheduler)


def test_a_file_with_a_model_only_cannot_be_resumed_from(tmp_path):
    path = tmp_path / "model.safetensors"
    trainer = build()
    train.write_checkpoint(path, {f"model.{k}": v for k, v in parameters(trainer).items()}, {})
    with pytest.raises(CheckpointError, match="may hold only a model"):
        trainer.resume(path)


def test_a_run_that_diverges_stops_with_the_remedy_and_keeps_the_last_good_checkpoint(tmp_path):
    trainer = build(n=16, callbacks=[train.Checkpoints(tmp_path)])
    trainer.fit(1)
    trainer.model[6].weight.data[...] = np.inf
    message = (
        r"epoch 2, step 3: the loss is nan.*\n  layer 6 \(Linear\): its parameter w.*\n.*lower"
    )
    with pytest.raises(DivergenceError, match=message):
        trainer.fit(1)
    assert train.read_checkpoint(tmp_path / "last.safetensors").info["epoch"] == 1


def test_curves_are_drawn_with_whole_epochs_as_ticks(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure", reason="needs matplotlib").Figure
    drawn = []
    savefig = figure.savefig

    def watched(self, *args, **options):
        savefig(self, *args, **options)
        drawn.append([axes.get_xticks().tolist() for axes in self.axes])

    monkeypatch.setattr(figure, "savefig", watched)
    build(n=16, callbacks=[train.Curves(tmp_path / "curves.png")]).fit(2)
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    for ticks in drawn[-1]:
        assert {1, 2} <= set(ticks)
        assert all(tick.is_integer() for tick in ticks)


def test_the_bar_shows_loss_accuracy_and_images_of_the_whole_run(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    class Slow(train.Callback):
        def on_batch_end(self, trainer):
            time.sleep(0.11)  # a bar redraws ten times a second at most

    build(n=20, callbacks=[Slow(), train.ProgressBar(), train.EpochLine()]).fit(2)
    out, err = capsys.readouterr()
    assert "epoch 2/2" in err
    assert "28/40" in err  # of two epochs
    assert "img/s, loss" in err
    assert "accuracy" in err
    assert len(out.splitlines()) == 2
    assert out.startswith("epoch 1/2  train loss")


def test_labels_past_the_outputs_are_named_in_an_evaluation(gpu):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).to(gpu)  # on the CPU cross_entropy checks
    images = gpucnn.tensor(np.zeros((2, 2, 2, 3), np.float32), device=gpu)
    labels = gpucnn.tensor(np.array([-1, 7]), device=gpu)
    message = r"has 3 outputs, so labels must be in 0\.\.2; this batch has labels from -1 to 7"
    with pytest.raises(ArgumentError, match=message):
        train.evaluate(model, [(images, labels)])
