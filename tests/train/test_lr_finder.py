"""find_lr: the rates it tries, its suggestion, and a trainer that is left as it was."""

import sys

import numpy as np
import pytest
from devices import host
from trainers import build

import gpucnn
from gpucnn import data, nn, optim, train
from gpucnn.errors import ArgumentError, MissingExtra


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(256, 10),
    )  # fmt: skip


def trainer_of(device, graph=None, precision=None):
    gpucnn.manual_seed(0)
    model = network().to(device)
    images = data.Synthetic(n=36)
    normalize = data.Normalize(*data.channel_statistics(images.images))
    change = data.Compose([data.RandomHorizontalFlip(), normalize])
    loader = data.DataLoader(images, 8, shuffle=True, transform=change, device=device)
    optimizer = optim.Adam(model.parameters(), 0.01)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, 15)
    return train.Trainer(
        model, optimizer, loader, scheduler=schedule, graph=graph, precision=precision
    )


def state(trainer):
    optimizer = trainer.optimizer.state_dict()
    arrays = {**trainer.model.state_dict(), **optimizer}
    return {name: host(x).copy() for name, x in arrays.items() if hasattr(x, "dtype")}, {
        "steps": optimizer["steps"], "groups": repr(optimizer["param_groups"]),
        "schedule": trainer.scheduler.state_dict(), "loader": trainer.loader.state_dict(),
        "modes": [module.training for module in trainer.model.modules()],
        "random": repr(gpucnn.random.get_state()), "place": (trainer.epoch, trainer.step),
    }  # fmt: skip


def assert_same(one, other):
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys()
    assert all(np.array_equal(array, other[0][name]) for name, array in one[0].items())


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(("before", "precision"), [(0, None), (2, None), (2, "fp16")])
def test_training_goes_on_with_the_bits_of_a_trainer_that_has_not_searched(
    device, graph, before, precision
):
    if device == "cpu" and graph:
        pytest.skip("a graph needs a GPU")
    searched, other = (trainer_of(device, graph or None, precision) for _ in range(2))
    gpucnn.manual_seed(0)
    searched.fit(before)
    there = state(searched)
    drawn = gpucnn.random.get_state()
    found = train.find_lr(searched, 1e-5, 100.0, steps=20)
    assert len(found.losses) > 10
    assert_same(state(searched), there)
    assert repr(gpucnn.random.get_state()) == repr(drawn)
    searched.fit(2)
    gpucnn.manual_seed(0)
    other.fit(before)
    other.fit(2)
    assert_same(state(searched), state(other))
    assert [row["train_loss"] for row in searched.history] == [
        row["train_loss"] for row in other.history
    ]


def test_in_the_middle_of_an_epoch_the_loader_continues_where_it_was():
    class Search(train.Callback):
        def on_batch_end(self, trainer):
            if trainer.step == 3:
                trainer.stop()

    runs = []
    for search in (True, False):
        trainer = trainer_of("cpu")
        trainer.callbacks.append(Search())
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(2)
        if search:
            train.find_lr(trainer, steps=12)
        trainer.fit(2)
        runs.append(state(trainer))
    assert_same(*runs)


def test_the_rates_are_spaced_evenly_in_their_logarithm_and_reach_all_groups():
    trainer = trainer_of("cpu")
    model = trainer.model
    groups = [{"params": [*model[0].parameters()]}, {"params": [*model[5].parameters()], "lr": 1.0}]
    trainer.optimizer = optim.SGD([*groups, {"params": [*model[1].parameters()]}], 0.5)
    trainer.scheduler = None
    seen = []
    step = trainer.optimizer.step

    def watched():
        seen.append([group["lr"] for group in trainer.optimizer.param_groups])
        step()

    trainer.optimizer.step = watched
    found = train.find_lr(trainer, 1e-4, 1e-2, steps=11)
    assert found.lrs == pytest.approx([10 ** (-4 + 0.2 * i) for i in range(11)])
    assert seen == [[lr] * 3 for lr in found.lrs]
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.5, 1.0, 0.5]


class Told(nn.Module):
    """Logits whose loss is told: that of `losses[i]` in step i."""

    def __init__(self, losses):
        self.weight = gpucnn.tensor(np.zeros((3072, 10), np.float32), requires_grad=True)
        self.losses = losses

    def forward(self, x):
        return x.reshape(len(x), -1) @ self.weight


def told(losses):
    """A trainer whose loss in step i is losses[i], whatever the rate."""
    model = Told(losses)
    trainer = build(model=model)
    values = iter(losses)
    trainer.loss = lambda logits, labels: (logits * 0.0).mean() + next(values)
    return trainer


def test_the_suggestion_is_where_the_loss_falls_most_steeply():
    steps = np.arange(100)
    losses = 2.0 / (1 + np.exp((steps - 60) / 5)) + 0.01 * np.random.default_rng(0).random(100)
    found = train.find_lr(told(losses.tolist()), 1e-6, 1.0, steps=100)
    assert found.losses == pytest.approx(losses, rel=1e-6)
    place = np.log10(found.suggestion) + 6
    assert place == pytest.approx(6 * 60 / 99, abs=0.2)  # step 60 of 99, over six decades


def test_the_running_mean_is_corrected_for_its_start():
    found = train.find_lr(told([2.0, 1.0, *[1.0] * 8]), steps=10)
    first = [2.0, (0.09 * 2 + 0.1 * 1) / 0.19]
    assert found.smoothed[:2] == pytest.approx(first)
    assert found.suggestion is not None


def test_a_loss_that_never_falls_has_no_suggestion():
    assert train.find_lr(told([1.0] * 40), steps=40).suggestion is None


@pytest.mark.parametrize(("last", "kept"), [(float("nan"), 12), (1e6, 13)])
def test_the_search_ends_when_the_loss_explodes(last, kept):
    found = train.find_lr(told([1.0] * 12 + [last] * 8), steps=20)
    assert len(found.losses) == len(found.lrs) == len(found.smoothed) == kept


def test_the_state_is_restored_after_an_error():
    trainer = trainer_of("cpu")
    trainer.model[3].eval()
    before = state(trainer)
    loss, calls = trainer.loss, []

    def fails(logits, labels):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("a mistake of the user")
        return loss(logits, labels)

    trainer.loss = fails
    with pytest.raises(RuntimeError, match="a mistake"):
        train.find_lr(trainer, 0.1, 1.0, steps=10)
    assert_same(state(trainer), before)


def test_the_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib", reason="draws")
    for losses in ([2.0 - 0.1 * i for i in range(15)], [1.0] * 15):
        found = train.find_lr(told(losses), steps=15)
        found.plot(tmp_path / "rates.png")
        assert (tmp_path / "rates.png").read_bytes()[:4] == b"\x89PNG"


def test_the_plot_needs_matplotlib(monkeypatch, tmp_path):
    found = train.find_lr(told([1.0] * 10), steps=10)
    for name in ("matplotlib", "matplotlib.backends.backend_agg", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r'LearningRates.plot needs matplotlib: pip install "gp'):
        found.plot(tmp_path / "rates.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_lr": 0.0}, "expected 0 < min_lr < max_lr, got 0.0 and 10.0"),
        ({"min_lr": 20.0}, "expected 0 < min_lr < max_lr"),
        ({"max_lr": float("inf")}, "expected 0 < min_lr < max_lr"),
        ({"steps": 9}, "steps must be at least 10, got 9"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        train.find_lr(build(), **arguments)


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ArgumentError, match="expected a Trainer, got a Sequential"):
        train.find_lr(network())
    trainer = build()
    trainer.loader = list(trainer.loader)
    with pytest.raises(ArgumentError, match="a list of 4 has no state_dict"):
        train.find_lr(trainer)
