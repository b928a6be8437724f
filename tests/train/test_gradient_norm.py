"""GradientNorm: the norms of the gradients as the optimizer uses them, in the files of a logger."""

import json

import numpy as np
import pytest
from devices import host
from trainers import STEPS, build

from gpucnn import train
from gpucnn.errors import ArgumentError


class Norms(train.Callback):
    """The norms by layer, from gradients copied to the host, divided by `scale`."""

    def __init__(self, scale=1.0):
        self.scale, self.found = scale, []

    def on_batch_end(self, trainer):
        squares = {}
        for name, parameter in trainer.model.named_parameters():
            gradient = host(parameter.grad).astype(np.float64) / self.scale
            layer = name.split(".")[0]
            squares[layer] = squares.get(layer, 0.0) + float((gradient**2).sum())
        self.found.append({layer: square**0.5 for layer, square in squares.items()})


def logged(tmp_path, norms, by_layer=True, **options):
    path = tmp_path / "run.jsonl"
    callbacks = [train.GradientNorm(by_layer), train.JSONLines(path, 1), norms]
    trainer = build(callbacks=callbacks, **options)
    trainer.fit(2)
    return trainer, [
        json.loads(line) for line in path.read_text().splitlines() if "step" in line[:9]
    ]


@pytest.mark.parametrize("graph", [False, True])
def test_the_norms_are_those_of_the_gradients_by_layer_and_in_total(device, graph, tmp_path):
    if device == "cpu" and graph:
        pytest.skip("a graph needs a GPU")
    norms = Norms()
    trainer, records = logged(tmp_path, norms, device=device, graph=graph or None)
    assert len(records) == 2 * STEPS
    for record, expected in zip(records, norms.found, strict=True):
        total = sum(norm**2 for norm in expected.values()) ** 0.5
        assert record["grad_norm"] == pytest.approx(total, rel=1e-5)
        found = {k.partition("/")[2]: v for k, v in record.items() if k.startswith("grad_norm/")}
        assert found == {layer: pytest.approx(norm, rel=1e-5) for layer, norm in expected.items()}
    assert not graph or trainer._guard.graph._captured.replays == 2 * STEPS - 2


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_gradients_of_a_scaled_loss_are_divided_again(device, on_nan, tmp_path):
    # With "skip" (and on the CPU), the gradients are divided in place; else inside the update.
    in_place = device == "cpu" or on_nan == "skip"
    norms = Norms(1.0 if in_place else 2.0**16)
    _, records = logged(tmp_path, norms, False, device=device, precision="fp16", on_nan=on_nan)
    for record, expected in zip(records, norms.found, strict=True):
        total = sum(norm**2 for norm in expected.values()) ** 0.5
        assert record["grad_norm"] == pytest.approx(total, rel=1e-4)
        assert 0.1 < total < 100
        assert not [name for name in record if name.startswith("grad_norm/")]


def test_it_needs_a_logger_that_records_steps(tmp_path):
    trainer = build(callbacks=[train.GradientNorm(), train.JSONLines(tmp_path / "x")])
    with pytest.raises(ArgumentError, match="no logger records steps"):
        trainer.fit(1)
