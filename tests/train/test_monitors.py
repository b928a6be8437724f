"""EarlyStopping and ModelCheckpoint, alone and over a resume."""

import numpy as np
import pytest
from trainers import build

from gpucnn import train
from gpucnn.errors import ArgumentError

VALUES = [0.5, 0.4, 0.45, 0.39, 0.395, 0.41, 0.3, 0.2]


class Says:
    """A metric that returns `VALUES`, one for each epoch that a trainer has done."""

    trainer = None

    def __call__(self, logits, labels):
        return VALUES[self.trainer.epoch]


def saying(*callbacks, **options):
    says = Says()
    says.trainer = build(callbacks=callbacks, test_metrics={"said": says}, **options)
    return says.trainer


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [
        ({"patience": 1}, 3),
        ({"patience": 2}, 6),
        ({"patience": 3}, 8),
        ({"patience": 2, "min_delta": 0.02}, 4),  # 0.39 is no improvement on 0.4
        ({"patience": 1, "mode": "max"}, 2),
    ],
)
def test_a_run_stops_once_the_monitor_has_not_improved_for_patience_epochs(arguments, epochs):
    stopping = train.EarlyStopping("test_said", **{"mode": "min", **arguments})
    trainer = saying(stopping)
    history = trainer.fit(len(VALUES))
    assert len(history) == trainer.epoch == epochs
    assert stopping.stopped_epoch == (epochs if epochs < len(VALUES) else 0)
    assert [row["test_said"] for row in history] == VALUES[:epochs]


@pytest.mark.parametrize("stopped", [2, 4, 6])
def test_a_resumed_run_stops_where_the_whole_one_does_and_keeps_the_same_files(tmp_path, stopped):
    def trainer(name):
        folder = tmp_path / name
        return saying(
            train.Checkpoints(folder, keep=1),
            train.EarlyStopping("test_said", patience=2, mode="min"),
            train.ModelCheckpoint(folder / "best", "test_said", "min", save_top_k=2),
        )

    (tmp_path / "whole").mkdir()
    (tmp_path / "resumed").mkdir()
    whole = trainer("whole")
    whole.fit(8)
    trainer("resumed").fit(stopped)
    resumed = trainer("resumed")
    resumed.resume(tmp_path / "resumed" / "last.safetensors")
    resumed.fit(8 - stopped)
    assert resumed.epoch == whole.epoch == 6
    names = [
        sorted(path.name for path in (tmp_path / name / "best").iterdir())
        for name in ("whole", "resumed")
    ]
    assert (
        names[0]
        == names[1]
        == [
            "epoch=4-test_said=0.3900.safetensors",
            "epoch=5-test_said=0.3950.safetensors",
        ]
    )
    for name in names[0]:
        ours, theirs = (
            train.read_checkpoint(tmp_path / run / "best" / name).tensors
            for run in ("whole", "resumed")
        )
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_a_fit_after_the_end_trains_nothing_until_patience_grows():
    stopping = train.EarlyStopping("test_said", patience=1, mode="min")
    trainer = saying(stopping)
    assert len(trainer.fit(8)) == len(trainer.fit(2)) == stopping.stopped_epoch == 3
    stopping.patience = 8
    assert len(trainer.fit(2)) == 5


def test_a_file_that_a_kill_has_prevented_is_written_on_resume(tmp_path):
    trainer = saying(train.Checkpoints(tmp_path), train.ModelCheckpoint(tmp_path, "test_loss"))
    trainer.fit(1)
    path = trainer.callbacks[-1].best_model_path
    before = train.read_checkpoint(path)
    path.unlink()
    again = saying(train.Checkpoints(tmp_path), train.ModelCheckpoint(tmp_path, "test_loss"))
    again.resume(tmp_path / "last.safetensors")
    again.fit(0)
    after = train.read_checkpoint(path)
    assert all(np.array_equal(before.tensors[key], after.tensors[key]) for key in before.tensors)


@pytest.mark.parametrize(("top", "kept"), [(1, [8]), (3, [4, 7, 8]), (-1, list(range(1, 9)))])
def test_the_best_checkpoints_are_kept_and_the_best_is_known(tmp_path, top, kept):
    best = train.ModelCheckpoint(tmp_path / "best", "test_said", "min", save_top_k=top)
    saying(best).fit(8)
    paths = sorted((tmp_path / "best").iterdir())
    assert [train.read_checkpoint(path).info["epoch"] for path in paths] == kept
    assert best.best_model_score == 0.2
    assert best.best_model_path == paths[-1]


def test_a_monitor_of_accuracy_is_better_when_larger(tmp_path):
    best = train.ModelCheckpoint(tmp_path, "train_accuracy", save_top_k=1)
    trainer = build(callbacks=[best], test=False)
    trainer.fit(3)
    found = [row["train_accuracy"] for row in trainer.history]
    assert best.best_model_score == max(found)
    epoch = 1 + found.index(max(found))
    assert best.best_model_path.name == f"epoch={epoch}-train_accuracy={max(found):.4f}.safetensors"


def test_a_metric_that_is_nan_never_counts_as_the_best(tmp_path):
    values = iter([float("nan"), 2.0, float("nan"), float("nan"), 1.0])
    best = train.ModelCheckpoint(tmp_path / "best", "test_x", "min", save_top_k=2)
    stopping = train.EarlyStopping("test_x", patience=2, mode="min")
    trainer = build(callbacks=[best, stopping], test_metrics={"x": lambda x, y: now[0]})
    now = [0.0]

    class Next(train.Callback):
        def on_epoch_start(self, trainer):
            now[0] = next(values)

    trainer.callbacks.append(Next())
    history = trainer.fit(5)
    assert [row["test_x"] for row in history] == [None, 2.0, None, None]
    assert [path.name for path in (tmp_path / "best").iterdir()] == [
        "epoch=2-test_x=2.0000.safetensors"
    ]


def test_a_stopped_trainer_has_the_bits_of_one_that_was_asked_for_so_many_epochs():
    stopped = saying(train.EarlyStopping("test_said", patience=1, mode="min"))
    stopped.fit(8)
    other = saying()
    other.fit(3)
    ours, theirs = (t.model.state_dict() for t in (stopped, other))
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train.EarlyStopping(patience=0), "patience must be at least 1, got 0"),
        (lambda: train.EarlyStopping(min_delta=-1.0), "min_delta must not be negative"),
        (lambda: train.EarlyStopping("test_top5"), 'expected mode="min" or "max" for test_top5$'),
        (lambda: train.EarlyStopping(mode="auto"), "for test_loss, got 'auto'"),
        (lambda: train.ModelCheckpoint("x", save_top_k=0), "save_top_k must be at least 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda monitor: train.EarlyStopping(monitor, mode="min"),
        lambda monitor: train.ModelCheckpoint("nowhere", monitor, mode="min"),
    ],
)
def test_a_monitor_that_the_run_does_not_have_is_refused_before_training(make):
    trainer = build(callbacks=[make("val_loss")])
    with pytest.raises(ArgumentError, match="no 'val_loss'; expected one of train_loss, train_acc"):
        trainer.fit(1)
    trainer = build(callbacks=[make("test_loss")], test=False)
    with pytest.raises(ArgumentError, match="give the Trainer a test_loader"):
        trainer.fit(1)
    assert trainer.step == 0
