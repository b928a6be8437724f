"""PyTorch's twin of a model has the same weights, and trains in every mode."""

from contextlib import nullcontext

import numpy as np
import pytest
from recorded import Recorded

import gpucnn
from gpucnn import cuda, models, nn, precision
from gpucnn.commands.check import peer, program
from gpucnn.cuda.card import Card
from gpucnn.cudasim.memory import unpoisoned
from gpucnn.device import Device


def test_pytorchs_twin_has_the_same_weights_and_gives_the_same_logits():
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    model = models.lenet5(generator=np.random.default_rng(0)).eval()
    x = np.random.default_rng(1).standard_normal((2, 28, 28, 1), np.float32)
    with gpucnn.no_grad(), torch.no_grad():
        ours = model(gpucnn.tensor(x)).numpy()
        theirs = peer.twin(model, "cpu").eval()(torch.tensor(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_model_without_a_twin_is_an_error_that_names_the_layer():
    pytest.importorskip("torch", reason="the oracle is PyTorch")
    with pytest.raises(gpucnn.GpucnnError, match="twin of a GELU"):
        peer.twin(nn.Sequential(nn.GELU()), "cpu")


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield torch
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.parametrize("precision", peer.PRECISIONS)
def test_pytorchs_step_runs_in_every_precision(precision, torch):
    step = peer.torch_step("lenet5", "cpu", peer.Mode("eager", precision), 2)
    step()
    step()
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
    assert (torch.get_float32_matmul_precision() == "high") == (precision == "tf32")


class Reached(Exception):
    pass


@pytest.mark.usefixtures("torch")
def test_losses_are_compared_in_float32(monkeypatch):
    monkeypatch.setattr(precision, "_float32_precision", "high")  # as an A100's default
    used = []

    def stop(*_):
        used.append(gpucnn.get_float32_precision("cudasim"))
        raise Reached

    monkeypatch.setattr(peer.ops, "cross_entropy", stop)
    with pytest.raises(Reached), unpoisoned(), cuda.record_launches(False):
        peer._losses(Recorded().reporter, "cpu")
    assert used == ["highest"]


def test_each_precision_is_timed_beside_the_same_one(monkeypatch, torch):
    made, milliseconds = [], {"gpucnn": 2.0, "replayed": 1.0, "PyTorch": 4.0, "CUDAGraph": 0.5}

    def own(name):
        def make(device, model, batch, precision):
            made.append((name, precision))
            return lambda: name

        return make

    def theirs(model, device, mode, batch):
        name = "CUDAGraph" if mode.graph else "PyTorch"
        made.append((name, mode.precision))
        return lambda: name

    monkeypatch.setattr(peer, "training_step", own("gpucnn"))
    monkeypatch.setattr(peer, "replayed_step", own("replayed"))
    monkeypatch.setattr(peer, "torch_step", theirs)
    monkeypatch.setattr(peer, "between_events", lambda step, *_: milliseconds[step()])
    monkeypatch.setattr(peer, "_torch_ms", lambda step, *_: milliseconds[step()])
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    recorded = Recorded()
    modes = [mode for mode in peer.MODES if mode.precision == "tf32"]
    peer._times(recorded.reporter, "cuda:0", "tf32", modes)
    assert sorted(made) == [(name, "tf32") for name in sorted(milliseconds)]
    rows = {row["cells"]["side"]: row["cells"] for row in recorded.all("row")}
    of_eager, of_graph = rows["channels_last, tf32"], rows["channels_last, tf32, CUDAGraph"]
    assert of_eager["eager gpucnn's time / its time"] == 0.5
    assert of_graph["replayed gpucnn's time / its time"] == 2.0
    assert recorded.all("headline") == [
        "0.50 of PyTorch's time (channels_last, tf32)",
        "replayed, 2.00 of PyTorch's time (channels_last, tf32, CUDAGraph)",
    ]


def test_what_a_card_cannot_compute_is_not_timed(monkeypatch, torch):
    monkeypatch.setattr(cuda, "card_of", lambda device: Card.parse("sm75-40"))
    recorded = Recorded()
    for name in ("tf32", "bf16"):
        peer._times(recorded.reporter, "cuda:0", name, [])
    assert recorded.states() == {"times in tf32": "skip", "times in bf16": "skip"}


# --- gpucnn's steps ---


@pytest.mark.parametrize(
    ("name", "element"),
    [("fp32", "float"), ("tf32", "tf32"), ("bf16", "bfloat16"), ("fp16", "half")],
)
def test_a_step_computes_its_products_in_the_precision_asked_for(name, element, monkeypatch):
    if name == "bf16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    other = "high" if name == "fp32" else "highest"
    monkeypatch.setattr(precision, "_float32_precision", other)
    device = Device("cudasim")
    with unpoisoned(), cuda.record_launches(False) as launches, np.errstate(all="ignore"):
        program.training_step(device, "alexnet_cifar10", 8, name)()
    forward = [launch for launch in launches if launch.kernel.name.startswith("conv2d_forward")]
    assert len(forward) == 5
    tensor = [launch for launch in forward if launch.kernel.name.endswith("_tensor")]
    assert len(tensor) == (0 if name == "fp32" else 4)  # the first has 3 channels
    assert all(dict(launch.defines)["ELEMENT"] == element for launch in tensor)
    assert precision._float32_precision == other


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_replayed_step_is_one_launch_of_a_graph():
    step = program.replayed_step(Device("cudasim"), "lenet5", 2, "fp32")
    with cuda.count_launches() as launches:
        step()
    assert dict(launches) == {"graph": 1}
