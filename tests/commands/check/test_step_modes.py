"""Steps in half precision and steps replayed as a graph are compared; a wrong one fails."""

import numpy as np
import pytest
from recorded import Recorded

from gpucnn import cuda
from gpucnn.commands.check import step_modes
from gpucnn.cuda.card import Card
from gpucnn.train.step_graph import StepGraph

pytestmark = pytest.mark.usefixtures("compiler")


@pytest.fixture
def wrong(monkeypatch):
    """A function that adds an error to the gradients of the device's step."""
    gradients = step_modes._gradients

    def put(error):
        def changed(device, autocast):
            found = gradients(device, autocast)
            if device != "cpu":
                found["3.weight"] += error * np.abs(found["3.weight"]).max()
            return found

        monkeypatch.setattr(step_modes, "_gradients", changed)

    return put


def examined(*modes):
    recorded = Recorded()
    with pytest.MonkeyPatch.context() as patch:
        kept = [mode for mode in step_modes._MODES if mode.name in modes]
        patch.setattr(step_modes, "_MODES", kept)
        step_modes.precisions(recorded.reporter)
    return recorded.states()


@pytest.mark.slow
def test_a_step_in_each_precision_agrees_with_the_cpu():
    pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    assert examined("tf32", "bf16", "fp16") == {
        "step in tf32": "ok", "step in bf16": "ok", "step in fp16": "ok"
    }  # fmt: skip


@pytest.mark.slow
def test_an_error_of_twice_the_bound_fails(wrong):
    wrong(2 * 2**-8)
    assert examined("fp16") == {"step in fp16": "fail"}


@pytest.mark.slow
def test_a_step_without_tensor_cores_fails(monkeypatch):
    monkeypatch.setattr(cuda, "card_of", lambda device: Card.parse("sm70-80"))
    monkeypatch.setattr(step_modes, "_MODES", [step_modes._Mode("fp16", 70, "float16", 2**-8)])
    recorded = Recorded()
    step_modes.precisions(recorded.reporter)
    assert recorded.states() == {"step in fp16": "fail"}
    assert "no launch used tensor cores" in recorded.text()


def test_what_a_card_cannot_compute_is_skipped(monkeypatch):
    monkeypatch.setattr(cuda, "card_of", lambda device: Card.parse("sm75-40"))
    assert examined("tf32", "bf16") == {"tf32": "skip", "bf16": "skip"}


@pytest.mark.slow
def test_replayed_steps_are_compared_and_counted(monkeypatch):
    recorded = Recorded()
    step_modes.graph(recorded.reporter)
    assert recorded.states() == {"graph": "ok"}
    assert "4 replayed steps" in recorded.text()
    monkeypatch.setattr(StepGraph, "step", lambda self, images, labels: False)
    recorded = Recorded()
    step_modes.graph(recorded.reporter)
    assert recorded.states() == {"graph": "fail"}
    assert "none of 6 steps was replayed" in recorded.text()
