"""The speedrun's script: it learns, resumes to the same bits, and steps as its PyTorch peer."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scripts import assert_refused, load_script
from small_script import same_bits, stop_at

import gpucnn
from gpucnn import data, models, nn
from gpucnn.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[2]
SMALL = "--dataset synthetic --limit 48 --batch-size 16 --epochs 4 --device cpu --quiet".split()


@pytest.fixture(scope="module")
def script():
    return load_script(ROOT / "examples" / "speedrun_cifar10.py")


@pytest.mark.slow
def test_stopped_after_the_whitening_bias_has_ended_it_resumes_to_the_same_bits(
    script, tmp_path, capsys
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert script.main([*SMALL, "--out", str(whole)]) == 0
    out = capsys.readouterr().out
    assert "test accuracy with six views" in out
    with stop_at(10):
        assert script.main([*SMALL, "--out", str(stopped)]) == 130
    capsys.readouterr()
    assert script.main(["--resume", "--out", str(stopped), "--quiet"]) == 0
    assert same_bits(whole, stopped)
    assert "test accuracy with six views" in capsys.readouterr().out
    model = gpucnn.load(stopped / "last.safetensors")
    assert isinstance(model, models.SpeedrunNet)


def test_rates_fall_to_0_in_straight_lines_the_first_groups_earlier(script):
    optimizer = script.build_optimizer(models.speedrun_cifar10(), 100, 0.24, 0.053, 0.67)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 6, 1, 6]
    scheduler = script.linear_to_zero(optimizer, 8, 3)
    lines = []
    for _ in range(9):
        lines.append(scheduler.get_last_lr())
        scheduler.step()
    lines = np.array(lines).T
    assert lines[0] == pytest.approx(5.3 * np.maximum(1 - np.arange(9) / 3, 0))
    for line, first in zip(lines[1:], (5.3, 67, 0.24), strict=True):
        assert line == pytest.approx(first * (1 - np.arange(9) / 8))


@pytest.mark.slow
def test_it_learns(script, tmp_path, capsys):
    flags = "--dataset synthetic --limit 300 --batch-size 50 --epochs 3 --device cpu --quiet"
    assert script.main([*flags.split(), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert float(out.split("test accuracy with six views ")[1].split("%")[0]) > 40


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--filter-lr -1", "filter-lr"),
        ("--lr 1", "unrecognized arguments"),
        ("--dataset mnist", "invalid choice"),
    ],
)
def test_a_mistake_is_one_clear_text_and_exit_status_2(flags, message, script, capsys):
    assert_refused(script.main, flags.split(), message, capsys)


# --- beside benchmarks/speedrun_peer.py ---


@pytest.fixture
def peer():
    pytest.importorskip("torch", reason="the peer is PyTorch")
    return load_script(ROOT / "benchmarks" / "speedrun_peer.py")


def to_peer(ours, theirs):
    """Copy the parameters: both list them in the order of the layers."""
    import torch

    def nchw(x):
        return torch.tensor(np.moveaxis(x, -1, 1) if x.ndim == 4 else x)

    whiten = theirs.whiten
    first, *layers = [m for m in ours if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    with torch.no_grad():
        whiten.weight.copy_(nchw(first.weight.numpy()))
        whiten.bias.copy_(torch.tensor(first.bias.numpy()))
        peers = []
        for block in theirs.blocks:
            peers += [block.first, block.norms[0], block.second, block.norms[1]]
        for mine, other in zip(layers, [*peers, theirs.head], strict=True):
            other.weight.copy_(nchw(mine.weight.numpy()))
            if isinstance(mine, nn.BatchNorm2d):
                other.bias.copy_(torch.tensor(mine.bias.numpy()))
    return [*peers, theirs.head], layers


def test_steps_of_the_recipe_are_those_of_the_peer(script, peer):
    import torch

    pictures = data.Synthetic(n=40)
    images = data.Normalize(*data.channel_statistics(pictures.images))(pictures.images)
    labels = pictures.labels
    model = models.speedrun_cifar10()
    model.whiten(images)
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    whitening = peer.whitening_filters(x)
    theirs = peer.Network(whitening, 10)
    others, layers = to_peer(model, theirs)

    # F^T F is the inverse covariance; the eigenvectors of close eigenvalues may be turned.
    ours = np.moveaxis(model[0].weight.numpy(), -1, 1).reshape(24, 12)
    inverse = whitening.numpy().reshape(24, 12)
    inverse = inverse.T @ inverse
    assert np.abs(ours.T @ ours - inverse).max() < 0.02 * np.abs(inverse).max()

    # In float64: Muon amplifies small singular values, and so the rounding of float32.
    model, theirs = model.astype(np.float64), theirs.double()
    images, x = images.astype(np.float64), x.double()
    optimizer = script.build_optimizer(model, 20, 0.24, 0.053, 0.67)
    sgd, muon = peer.optimizers(theirs, 20)
    before = theirs.whiten.bias.detach().numpy().copy()
    loss = nn.CrossEntropyLoss(label_smoothing=0.2)
    for step in range(2):
        rows = slice(20 * step, 20 * step + 20)
        optimizer.zero_grad()
        mine = loss(model(gpucnn.tensor(images[rows])), labels[rows])
        mine.backward()
        optimizer.step()
        theirs.zero_grad()
        other = torch.nn.functional.cross_entropy(
            theirs(x[rows]), torch.tensor(labels[rows]), label_smoothing=0.2, reduction="sum"
        )
        other.backward()
        sgd.step()
        muon.step()
        assert mine.item() * 20 == pytest.approx(other.item(), rel=1e-9)
    assert np.abs(theirs.whiten.bias.detach().numpy() - before).max() > 1e-6  # it has learned
    for a, b in zip([model[0], *layers], [theirs.whiten, *others], strict=True):
        if a is model[0]:
            pairs = [(a.bias, b.bias)]
        elif isinstance(a, nn.BatchNorm2d):
            pairs = [(a.bias, b.bias), (a.running_mean, b.running_mean)]
        else:
            pairs = [(a.weight, b.weight)]
        for p, q in pairs:
            mine, expected = p.numpy(), q.detach().numpy()
            expected = np.moveaxis(expected, 1, -1) if expected.ndim == 4 else expected
            assert np.abs(mine - expected).max() < 1e-6 * max(np.abs(expected).max(), 1e-3)

    x_test = gpucnn.tensor(images[:7])
    six = models.SixViews(model.eval())(x_test).numpy().argmax(1)
    predict = partial(peer.six_views, theirs.eval())
    assert peer.accuracy(predict, x[:7], torch.from_numpy(six)) == 1.0
    assert peer.accuracy(predict, x[:7], torch.from_numpy(six + 1)) == 0.0


def test_the_peer_shifts_each_image_and_reflects_its_edge(peer):
    import torch

    images = torch.arange(3 * 32 * 32, dtype=torch.float32).reshape(3, 1, 32, 32)
    order = torch.tensor([2, 0, 1, 0])
    shifted = peer.augmented(images, order, torch.Generator().manual_seed(1)).numpy()
    for image, i in zip(shifted, order.tolist(), strict=True):
        padded = np.pad(images[i, 0].numpy(), 2, mode="reflect")
        cuts = [padded[y : y + 32, z : z + 32] for y in range(5) for z in range(5)]
        assert any(np.array_equal(image[0], cut) for cut in cuts)


@pytest.mark.slow
def test_two_steps_on_the_simulator_are_those_on_the_cpu(script, tmp_path):
    """Here in float32, where Muon amplifies rounding; the next test compares the parameters."""
    flags = "--dataset synthetic --limit 4 --batch-size 2 --epochs 1 --precision fp32 --quiet"
    losses = []
    for device in ("cpu", "cudasim"):
        out = tmp_path / device
        assert script.main([*flags.split(), "--device", device, "--out", str(out)]) == 0
        info = read_checkpoint(out / "last.safetensors").info
        assert info["step"] == 2
        row = info["history"][0]
        losses.append([row["train_loss"], row["test_loss"]])
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)


@pytest.mark.slow
def test_parameters_after_two_steps_in_float64_are_the_same_on_the_simulator(script):
    pictures = data.Synthetic(n=4)
    images = data.Normalize(*data.channel_statistics(pictures.images))(pictures.images)
    loss, models_after = nn.CrossEntropyLoss(label_smoothing=0.2), []
    for device in ("cpu", "cudasim"):
        model = models.speedrun_cifar10(generator=np.random.default_rng(0))
        model.whiten(images)
        model = model.astype(np.float64).to(device)
        optimizer = script.build_optimizer(model, 2, 0.24, 0.053, 0.67)
        for rows in (slice(0, 2), slice(2, 4)):
            x = gpucnn.tensor(images[rows].astype(np.float64), device=device)
            optimizer.zero_grad()
            loss(model(x), gpucnn.tensor(pictures.labels[rows], device=device)).backward()
            optimizer.step()
        models_after.append(model.to("cpu").state_dict())
    ours, simulated = models_after
    for name, array in ours.items():
        assert np.abs(simulated[name] - array).max() <= 1e-7 * max(np.abs(array).max(), 1e-3), name
