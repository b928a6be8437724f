"""Trainer(precision=...): what runs under autocast, and what the loss scaler does to steps."""

import sys

import numpy as np
import pytest
from trainers import In, assert_equal_states, whole_state

import gpucnn
from gpucnn import data, nn, optim, precision, train
from gpucnn.device import Device, to_host
from gpucnn.errors import ArgumentError, DivergenceError, DtypeError, TrainingWarning
from gpucnn.ops import cross_entropy
from gpucnn.optim.loss_scaler import LEAST
from gpucnn.precision import PRECISIONS, autocast_dtype, bfloat16, chosen
from gpucnn.train.step_precision import StepPrecision

HALVES = {"fp16": np.dtype(np.float16), "bf16": bfloat16()}


def build(layer=None, device="cpu", lr=0.05, steps=4, **options):
    """A Trainer of convolutions on small images, of four steps an epoch."""
    gpucnn.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (8 * steps, 8, 8, 3), np.uint8)
    dataset = data.Dataset(images, np.arange(8 * steps) % 4, tuple("abcd"))
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 4, 3),
        nn.Flatten(),
        *([] if layer is None else [layer]),
    ).to(device)
    loader = data.DataLoader(
        dataset, 8, shuffle=True, transform=data.Normalize((0.5,) * 3, (0.25,) * 3), device=device
    )
    optimizer = optim.SGD(model.parameters(), lr, momentum=0.9)
    trainer = train.Trainer(model, optimizer, loader, loader, **options)
    if layer is not None:
        layer.trainer = trainer
    return trainer


# --- which precision ---


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("auto", 90, "bf16"),
        ("auto", 80, "bf16"),
        ("auto", 75, "fp16"),
        ("auto", 61, "fp32"),
        ("bf16", 75, "bf16"),
        ("tf32", 80, "tf32"),
        ("tf32", 75, "fp32"),
        ("fp32", 90, "fp32"),
        (None, 90, "tf32"),
        (None, 75, "fp32"),
    ],
)
def test_a_card_decides_about_auto_and_tf32(name, capability, expected, monkeypatch):
    monkeypatch.setattr(precision, "_float32_precision", None)
    monkeypatch.setattr(precision, "compute_capability", lambda device: capability)
    assert chosen(name, Device("cuda")) == expected
    assert chosen(name, Device("cpu")) == (expected if expected == name == "bf16" else "fp32")
    assert chosen("auto", Device("cudasim")) == "fp32"


def test_an_unknown_precision_is_refused():
    with pytest.raises(ArgumentError, match="precision='fp64' is unknown; expected 'fp32', 'tf32'"):
        build(precision="fp64")


def test_bf16_without_ml_dtypes_is_refused_before_the_first_step(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    bfloat16.cache_clear()
    try:
        with pytest.raises(DtypeError, match="bfloat16 needs the package ml_dtypes"):
            build(precision="bf16")
    finally:
        bfloat16.cache_clear()


# --- what runs in it ---


def test_tf32_is_set_for_a_step_and_its_backward_pass_only(monkeypatch):
    monkeypatch.setattr(precision, "compute_capability", lambda device: 80)
    steps = StepPrecision("tf32", Device("cudasim"))
    with steps.products(), steps.forward():
        assert precision.uses_tf32(Device("cudasim"))
        assert autocast_dtype() is None
    assert not precision.uses_tf32(Device("cudasim"))


@pytest.mark.parametrize("name", [None, *PRECISIONS])
def test_every_precision_trains_alike_and_only_products_are_half(name):
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append((x.dtype, autocast_dtype(), precision._float32_precision))
            return x

    def loss(logits, labels):
        seen.append((logits.dtype, autocast_dtype(), precision._float32_precision))
        return cross_entropy(logits, labels)

    trainer = build(Watch(), precision=name, loss=loss)
    trainer.fit(2)
    half = HALVES.get(name)
    assert set(seen) == {(half or np.dtype(np.float32), half, "highest")}
    assert autocast_dtype() is None
    assert precision._float32_precision == "highest"
    assert {p.dtype for p in trainer.model.parameters()} == {np.dtype(np.float32)}
    assert {b.dtype for b in trainer.model.buffers()} == {np.dtype(np.float32)}
    exact = build().fit(2)
    assert [row["train_loss"] for row in trainer.history] == pytest.approx(
        [row["train_loss"] for row in exact], rel=0 if half is None else 0.02
    )
    assert (trainer.scaler is not None) == (name == "fp16")


@pytest.mark.parametrize("graph", [False, True])
def test_no_step_but_the_first_casts_a_weight(gpu, graph):
    found = []

    class Look(train.Callback):
        def on_batch_end(self, trainer):
            copies = trainer.optimizer.copies.offered()
            found.append([copy.parameter is trainer.model[2].weight for copy in copies])

    trainer = build(device=gpu, precision="bf16", graph=graph, callbacks=[Look()])
    trainer.fit(2)  # the convolution of 8 to 16 channels runs on tensor cores
    assert found == [[True]] * 8


# --- the loss scaler ---

ways = pytest.mark.parametrize("on_nan", ["stop", "skip"])


@ways
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_an_overflow_of_scaled_gradients_is_skipped_and_is_no_fault(device, on_nan, value):
    trainer = build(In(2, "backward", value), device=device, on_nan=on_nan, precision="fp16")
    states = []

    class Keep(train.Callback):
        def on_batch_end(self, trainer):
            state, steps = whole_state(trainer)
            running = {name for name, _ in trainer.model.named_buffers()}
            states.append(({k: v for k, v in state.items() if k not in running}, steps))

    trainer.callbacks.append(Keep())
    trainer.fit(1)
    assert trainer.scaler.state_dict() == {"scale": 2.0**15, "good_steps": 1, "skipped": 1}
    assert trainer.skipped == 0
    assert_equal_states((states[2][0], 0), (states[1][0], 0))
    assert not np.array_equal(states[3][0]["velocity"], states[2][0]["velocity"])
    assert np.isfinite(trainer.history[0]["train_loss"])


@ways
def test_gradients_that_no_scale_makes_finite_are_a_fault(device, on_nan):
    class Always(In):
        def forward(self, x):
            self.step = self.trainer.step
            return super().forward(x)

    trainer = build(Always(0, "backward", np.nan), device=device, on_nan=on_nan, precision="fp16")
    trainer.scaler.load_state_dict({"scale": 2 * LEAST, "good_steps": 0, "skipped": 0})
    if on_nan == "skip":
        with pytest.warns(TrainingWarning, match="a gradient is not finite"):
            trainer.fit(1)
        assert (trainer.scaler.skipped, trainer.skipped) == (4, 3)
    else:
        with pytest.raises(DivergenceError, match=r"step 2: a gradient is not finite"):
            trainer.fit(1)
        assert trainer.scaler.get_scale() == LEAST


def test_a_loss_that_is_not_finite_is_a_fault_as_without_a_scaler(device):
    trainer = build(In(2, "forward", np.nan), device=device, precision="fp16")
    with pytest.raises(DivergenceError, match="step 3: the loss is nan"):
        trainer.fit(1)


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
def test_a_resumed_run_has_the_same_bits_scale_and_count(device, kind, tmp_path):
    def make(lr):
        trainer = build(In(2, "backward", np.inf), device=device, precision="fp16")
        trainer.optimizer = kind(trainer.model.parameters(), lr)
        trainer.ranks._optimizer = trainer.optimizer
        trainer.scaler._interval = 3
        return trainer

    class Save(train.Callback):
        def on_batch_end(self, trainer):
            if trainer.step == 4:
                trainer.save(tmp_path / "4.safetensors")

    whole = make(0.01)
    whole.callbacks.append(Save())
    whole.fit(2)
    resumed = make(0.5)
    resumed.resume(tmp_path / "4.safetensors")
    assert resumed.scaler.state_dict() == {"scale": 2.0**15, "good_steps": 1, "skipped": 1}
    resumed.fit(2 - resumed.epoch)
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    assert resumed.scaler.get_scale() == 2.0**16
    for name, array in whole.model.state_dict().items():
        assert to_host(array).tobytes() == (to_host(resumed.model.state_dict()[name]).tobytes()), (
            name
        )


def test_a_run_may_go_on_in_another_precision(tmp_path):
    trainer = build(precision="fp32")
    trainer.fit(1)
    trainer.save(tmp_path / "fp32.safetensors")
    half = build(precision="fp16")
    half.resume(tmp_path / "fp32.safetensors")
    half.fit(1)
    half.save(tmp_path / "fp16.safetensors")
    trainer.resume(tmp_path / "fp16.safetensors")
    assert half.scaler.state_dict()["good_steps"] == 4


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_captured_run_has_the_bits_of_an_eager_one(name, gpu):
    found = []
    for graph in (False, True):
        trainer = build(device=gpu, precision=name, graph=graph, steps=5)
        trainer.fit(2)
        assert trainer._guard.graph.reason == ("" if graph else "graph=False")
        state = None if trainer.scaler is None else trainer.scaler.state_dict()
        found.append((whole_state(trainer), trainer.history[-1]["train_loss"], state))
    assert_equal_states(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]
