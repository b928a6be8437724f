import numpy as np
import pytest
from devices import host

import gpucnn
from gpucnn import data, models, nn, ops, optim, train
from gpucnn.errors import ArgumentError


def batch(n=8):
    images = np.random.default_rng(0).standard_normal((n, 32, 32, 3)).astype(np.float32)
    return images + np.roll(images, 1, 1) + np.roll(images, 1, 2)


def test_the_network_has_the_layers_and_parameters_of_its_source():
    model = models.speedrun_cifar10()
    assert sum(p.size for p in model.parameters()) == 1_972_792
    assert sum(p.size for p in model.parameters() if p.requires_grad) == 1_971_352
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["0.weight", *(f"{i}.weight" for i in (4, 7, 11, 14, 18, 21))]
    layers = nn.summary(model, (32, 32, 3)).layers
    shapes = [layer.output_shape for layer in layers if layer.layer.startswith("Conv2d")]
    assert shapes == [
        (31, 31, 24), (31, 31, 64), (15, 15, 64), (15, 15, 256), (7, 7, 256), (7, 7, 256),
        (3, 3, 256),
    ]  # fmt: skip
    assert model[25].weight.numpy().std() == pytest.approx(1, rel=0.05)
    norms = [layer for layer in model if isinstance(layer, nn.BatchNorm2d)]
    assert [(norm.eps, norm.momentum) for norm in norms] == [(1e-12, 0.4)] * 6


def test_whiten_sets_the_first_layer_from_images(device):
    model = models.speedrun_cifar10().to(device)
    images = batch()
    model.whiten(images)
    with gpucnn.no_grad():
        y = host(model[0](gpucnn.tensor(images, device=device))).reshape(-1, 24)
    assert np.abs(np.cov(y[:, :12].T) - np.eye(12)).max() < 0.02
    assert not model[0].weight.requires_grad
    with pytest.raises(ArgumentError, match="expected float images"):
        model.whiten(np.zeros((2, 32, 32, 3), np.uint8))


def test_until_whiten_the_first_layer_has_random_filters_and_their_negatives():
    one, other = (
        models.speedrun_cifar10(generator=np.random.default_rng(5))[0].weight.numpy()
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one[12:], -one[:12])


def test_a_trainer_keeps_what_is_frozen_and_a_checkpoint_restores_the_rest(tmp_path):
    model = models.speedrun_cifar10(generator=np.random.default_rng(1))
    model.whiten(batch())
    before = {name: array.copy() for name, array in model.state_dict().items()}
    dataset = data.Dataset((batch(32) * 20 + 128).clip(0, 255).astype(np.uint8), np.arange(32) % 10)
    loader = data.DataLoader(
        dataset, 16, transform=data.Normalize([0.5] * 3, [0.25] * 3), device="cpu"
    )
    trainer = train.Trainer(
        model, optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=0.1), loader,
        verbose=False,
    )  # fmt: skip
    trainer.fit(1)
    same = [n for n, x in model.state_dict().items() if np.array_equal(x, before[n])]
    assert same == [name for name, p in model.named_parameters() if not p.requires_grad]
    path = tmp_path / "model.safetensors"
    gpucnn.save(path, model, "speedrun_cifar10", {})
    loaded = gpucnn.load(path)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[name], array)
    assert not loaded[0].weight.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_equal_pytorchs(training, conv_algorithm):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    t = torch.nn
    conv_algorithm("exact")
    model = models.speedrun_cifar10(generator=np.random.default_rng(1)).train(training)
    model.whiten(batch())
    twin = t.Sequential(
        *(
            t.Conv2d(m.in_channels, m.out_channels, m.kernel_size, padding=m.padding,
                     bias=m.bias is not None) if isinstance(m, nn.Conv2d)
            else t.BatchNorm2d(m.num_features, m.eps, m.momentum) if isinstance(m, nn.BatchNorm2d)
            else t.GELU() if isinstance(m, nn.GELU)
            else t.MaxPool2d(m.kernel_size) if isinstance(m, nn.MaxPool2d)
            else t.Flatten() if isinstance(m, nn.Flatten)
            else t.Linear(256, 10, bias=False) if isinstance(m, nn.Linear)
            else t.Identity()
            for m in model
        )
    ).double().train(training)  # fmt: skip
    state = {
        name: torch.tensor(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x).double()
        for name, x in model.state_dict().items()
    }
    twin.load_state_dict(state, strict=False)
    x, labels = batch(), np.arange(8) % 10
    logits = model(gpucnn.tensor(x))
    expected = twin(torch.tensor(x).double().permute(0, 3, 1, 2)) / 256
    np.testing.assert_allclose(logits.numpy(), expected.detach().numpy(), rtol=1e-3, atol=1e-3)
    ops.cross_entropy(logits, labels).backward()
    t.functional.cross_entropy(expected, torch.tensor(labels)).backward()
    theirs = dict(twin.named_parameters())
    for name, p in model.named_parameters():
        assert (p.grad is None) == (not p.requires_grad)
        if p.grad is None:
            continue
        grad = theirs[name].grad
        grad = (grad.permute(0, 2, 3, 1) if grad.ndim == 4 else grad).numpy()
        assert np.abs(p.grad - grad).max() <= 1e-2 * np.abs(grad).max(), name
