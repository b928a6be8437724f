import numpy as np
import pytest

import gpucnn
from gpucnn import data, models, optim, train
from gpucnn.errors import ArgumentError, CheckpointError


def same_state(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("lenet5", {"classes": 3, "channels": 2}),
        ("mlp", {"sizes": [4, 6, 6, 6, 6, 3], "activation": "tanh"}),
        ("cuda_convnet_18pct", {}),
    ],
)
def test_a_saved_model_is_rebuilt_from_its_file_alone(name, config, tmp_path):
    model = models.build(name, **config)
    gpucnn.save(tmp_path / "model.safetensors", model, name, config)
    before = gpucnn.default_generator().bit_generator.state["state"]["counter"].copy()
    loaded = gpucnn.load(tmp_path / "model.safetensors")
    after = gpucnn.default_generator().bit_generator.state["state"]["counter"]
    assert same_state(model, loaded)
    assert not any(module.training for _, module in loaded.named_modules())
    assert np.array_equal(before, after)


def test_running_statistics_come_back_and_evaluation_gives_the_same_bits(tmp_path, rng):
    model = models.resnet18_cifar(classes=4)
    x = gpucnn.tensor(rng.standard_normal((2, 32, 32, 3), dtype=np.float32))
    model(x)  # moves the running statistics
    gpucnn.save(tmp_path / "resnet.safetensors", model, "resnet18_cifar", {"classes": 4})
    loaded = gpucnn.load(tmp_path / "resnet.safetensors")
    assert same_state(model, loaded)
    assert np.array_equal(loaded(x).numpy(), model.eval()(x).numpy())


def test_a_checkpoint_of_a_training_run_loads_too(tmp_path):
    model = models.lenet5(classes=10)
    images = np.zeros((4, 28, 28, 1), np.uint8)
    dataset = data.Dataset(images, np.arange(4), tuple("0123456789"))
    loader = data.DataLoader(dataset, 2, transform=data.Normalize((0.1,), (0.3,)), device="cpu")
    info = {"model": {"name": "lenet5", "config": {}}}
    trainer = train.Trainer(model, optim.SGD(model.parameters(), 0.1), loader, info=info)
    trainer.fit(1)
    trainer.save(tmp_path / "last.safetensors")
    assert same_state(model, gpucnn.load(tmp_path / "last.safetensors"))


def test_classes_and_normalisation_are_kept(tmp_path):
    path = tmp_path / "model.safetensors"
    normalize = data.Normalize((0.25,), (0.5,))
    gpucnn.save(path, models.lenet5(classes=2), "lenet5", {"classes": 2}, ("a", "b"), normalize)
    info = train.read_checkpoint(path).info
    assert info["classes"] == ["a", "b"]
    assert info["normalize"] == {"mean": [0.25], "std": [0.5]}
    assert info["model"] == {"name": "lenet5", "config": {"classes": 2}}


def test_saving_refuses_what_could_not_be_loaded(tmp_path):
    model = models.lenet5()
    with pytest.raises(ArgumentError, match="'lenet6' is unknown"):
        gpucnn.save(tmp_path / "x", model, "lenet6")
    with pytest.raises(ArgumentError, match="plain data"):
        gpucnn.save(tmp_path / "x", model, "lenet5", {"classes": object()})
    with pytest.raises(CheckpointError, match=r"cannot be written \(No such file or directory\)"):
        gpucnn.save(tmp_path / "none" / "x", model, "lenet5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({}, "does not say which model"),
        ({"model": "lenet5"}, "does not say which model"),
        ({"model": {"name": ["lenet5"]}}, "does not say which model"),
        ({"model": {"name": "lenet5", "config": [3]}}, "not names and values"),
        ({"model": {"name": "os.system", "config": {}}}, "'os.system' is unknown"),
        ({"model": {"name": "lenet5", "config": {"depth": 3}}}, "cannot be rebuilt"),
        ({"model": {"name": "lenet5", "config": {"classes": "ten"}}}, "positive int"),
        ({"model": {"name": "lenet5", "config": {"generator": 3}}}, "cannot be rebuilt"),
        ({"model": {"name": "lenet5", "config": {"classes": 3}}}, r"expected \(3, 84\)"),
        ({"model": {"name": "mlp", "config": {"sizes": 7}}}, "cannot be rebuilt"),
    ],
)
def test_a_checkpoint_that_cannot_be_rebuilt_says_why(info, message, tmp_path):
    path = tmp_path / "x.safetensors"
    state = models.lenet5().state_dict()
    train.write_checkpoint(path, {f"model.{k}": v for k, v in state.items()}, info)
    with pytest.raises(CheckpointError, match=message) as caught:
        gpucnn.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        gpucnn.load(tmp_path / "none.safetensors")
