"""PyTorch's twin of a model has the same weights, and trains in every mode."""

import numpy as np
import pytest

import gpucnn
from gpucnn import models, nn
from gpucnn.commands.check import peer


def test_pytorchs_twin_has_the_same_weights_and_gives_the_same_logits():
    torch = pytest.importorskip("torch", reason="the twin is PyTorch's")
    model = models.lenet5(generator=np.random.default_rng(0)).eval()
    x = np.random.default_rng(1).standard_normal((2, 28, 28, 1), np.float32)
    with gpucnn.no_grad(), torch.no_grad():
        ours = model(gpucnn.tensor(x)).numpy()
        theirs = peer.twin(model, "cpu").eval()(torch.tensor(x).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_model_without_a_twin_is_an_error_that_names_the_layer():
    pytest.importorskip("torch", reason="the twin is PyTorch's")
    with pytest.raises(gpucnn.GpucnnError, match="twin of a GELU"):
        peer.twin(nn.Sequential(nn.GELU()), "cpu")


@pytest.mark.parametrize("mode", [peer.MODES[0], peer.MODES[2]], ids=lambda mode: mode.name)
def test_pytorchs_step_runs_in_every_mode(mode):
    torch = pytest.importorskip("torch", reason="the twin is PyTorch's")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        step = peer.torch_step("lenet5", "cpu", mode, 2)
        step()
        step()
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
