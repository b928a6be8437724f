import numpy as np
import pytest
from forged import forge

import gpucnn
from gpucnn import data, models, nn, optim, train
from gpucnn.checkpoint import read_checkpoint, write_checkpoint
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, CheckpointError, OutputError
from gpucnn.models import registry


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


def test_running_statistics_are_restored_and_evaluation_gives_the_same_bits(tmp_path, rng):
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
    info = read_checkpoint(path).info
    assert info["classes"] == ["a", "b"]
    assert info["normalize"] == {"mean": [0.25], "std": [0.5]}
    assert info["model"] == {"name": "lenet5", "config": {"classes": 2}}


def test_saving_refuses_a_file_that_could_not_be_loaded(tmp_path):
    model = models.lenet5()
    with pytest.raises(ArgumentError, match="'lenet6' is unknown"):
        gpucnn.save(tmp_path / "x", model, "lenet6")
    with pytest.raises(ArgumentError, match="plain data"):
        gpucnn.save(tmp_path / "x", model, "lenet5", {"classes": object()})
    with pytest.raises(ArgumentError, match="plain data"):
        gpucnn.save(tmp_path / "x", model, "lenet5", 10)
    with pytest.raises(ArgumentError, match="plain data"):
        gpucnn.save(tmp_path / "x", model, "lenet5", classes=10)
    with pytest.raises(OutputError, match=r"cannot be written \(No such file or directory\)"):
        gpucnn.save(tmp_path / "none" / "x", model, "lenet5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({}, "does not say which model"),
        ({"model": {"name": "lenet5" * 1000}}, "its model lenet5.* is unknown"),
        ({"model": {"class": "Net" * 1000}}, "a model of your own, NetNet"),
        ({"model": "lenet5"}, "model: expected a dict with .*, got 'lenet5'"),
        ({"model": {"name": ["lenet5"]}}, "model.name: expected text, got a list of 1"),
        ({"model": {"name": "lenet5", "config": [3]}}, "model.config: expected a dict, got a list"),
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
    forge(path, {f"model.{k}": v for k, v in state.items()}, info)
    with pytest.raises(CheckpointError, match=f"(?s){message}") as caught:
        gpucnn.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_missing_file_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        gpucnn.load(tmp_path / "none.safetensors")


# --- saving checks that the file could be loaded ---


@pytest.mark.parametrize(
    ("model", "name", "config", "message"),
    [
        (
            models.lenet5(classes=3),
            "lenet5",
            None,
            r"11\.weight: \(10, 84\) float32 built, \(3, 84\)",
        ),
        (models.lenet5(), "lenet", None, r"0\.weight: \(20, 5, 5, 1\)"),
        (models.lenet5(), "lenet5", {"depth": 3}, "cannot be built"),
        (models.lenet5(), "lenet5", {"generator": 3}, "cannot be built"),
        (models.mlp([4, 6, 1]), "mlp", {"sizes": 7}, "cannot be built"),
        (models.mlp([4, 6, 1], "tanh"), "mlp", {"sizes": [4, 6, 1]}, "2: ReLU built, Tanh given"),
        (
            models.mlp([4, 6]),
            "mlp",
            {"sizes": [4, 6, 1]},
            r"3\.weight: \(1, 6\) float32 built, none",
        ),
        (models.lenet5().astype(np.float64), "lenet5", None, "float32 built, .* float64 given"),
        (models.lenet5(), None, {"classes": 10}, "config needs the name"),
        ({"w": np.zeros(3)}, "lenet5", None, "expected a Module"),
    ],
)
def test_saving_refuses_a_name_and_config_that_do_not_rebuild_the_model(
    model, name, config, message, tmp_path
):
    with pytest.raises(ArgumentError, match=message):
        gpucnn.save(tmp_path / "x", model, name, config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", models.BY_NAME)
def test_an_outline_has_the_modules_shapes_and_dtypes_of_the_model_and_draws_nothing(name):
    config = {"sizes": [4, 6, 3], "activation": "tanh"} if name == "mlp" else {"classes": 4}
    before = repr(gpucnn.random.get_state())
    outline = registry.outline(name, config)
    assert repr(gpucnn.random.get_state()) == before
    model = models.build(name, generator=np.random.default_rng(0), **config)
    assert repr(outline) == repr(model)
    assert [(key, x.shape, x.dtype) for key, x in outline.state_dict().items()] == [
        (key, x.shape, x.dtype) for key, x in model.state_dict().items()
    ]


def test_an_outline_is_on_the_cpu_inside_a_device_block(device):
    with gpucnn.device(device):
        outline = registry.outline("lenet5", {})
    assert {str(p.device) for p in outline.parameters()} == {"cpu"}


def test_an_outline_takes_no_memory():
    huge = registry.outline("mlp", {"sizes": [300_000, 300_000, 2], "activation": "sigmoid"})
    assert huge.parameters()[0].shape == (300_000, 300_000)


# --- custom models ---


class Own(nn.Module):
    """A model that models.build does not know: branches, buffers, a parameter without axes."""

    def __init__(self, width=5):
        self.first = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)
        self.branches = [nn.Linear(width, 3), nn.Linear(width, 3)]
        self.temperature = nn.Parameter(np.array(2.0, np.float32))

    def forward(self, x):
        x = self.norm(self.first(x))
        return (self.branches[0](x) + self.branches[1](x)) * self.temperature


def test_a_custom_model_loads_into_another_of_its_class(tmp_path, rng):
    model = Own()
    x = gpucnn.tensor(rng.standard_normal((6, 4), dtype=np.float32))
    model(x)  # moves the running statistics
    gpucnn.save(tmp_path / "own.safetensors", model)
    other = Own()
    assert not same_state(model, other)
    assert gpucnn.load(tmp_path / "own.safetensors", other) is other
    assert same_state(model, other)
    assert not any(module.training for _, module in other.named_modules())
    assert np.array_equal(other(x).numpy(), model.eval()(x).numpy())


def test_a_file_of_a_custom_model_keeps_classes_and_normalisation(tmp_path):
    path = tmp_path / "own.safetensors"
    gpucnn.save(path, Own(), classes=("a", "b", "c"), normalize=data.Normalize((0.5,), (0.2,)))
    info = read_checkpoint(path).info
    assert info["model"] == {"class": "Own"}
    assert info["classes"] == ["a", "b", "c"]
    assert info["normalize"] == {"mean": [0.5], "std": [0.2]}


def test_a_named_model_and_a_training_run_load_into_a_model_too(tmp_path):
    model = models.lenet5(classes=3)
    gpucnn.save(tmp_path / "named.safetensors", model, "lenet5", {"classes": 3})
    assert same_state(model, gpucnn.load(tmp_path / "named.safetensors", models.lenet5(classes=3)))
    images = data.Dataset(np.zeros((4, 2, 2, 3), np.uint8), np.array([0, 1, 0, 1]), ("a", "b"))
    normalize = data.Normalize((0.1,) * 3, (0.3,) * 3)
    loader = data.DataLoader(images, 2, transform=normalize, device="cpu")
    own = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    trainer = train.Trainer(own, optim.SGD(own.parameters(), 0.1), loader)
    trainer.fit(1)
    trainer.save(tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match=r"load it into one: gpucnn\.load\(path, model\)"):
        gpucnn.load(tmp_path / "last.safetensors")
    other = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert same_state(own, gpucnn.load(tmp_path / "last.safetensors", other))


@pytest.mark.parametrize("how", ["second", "keyword"])
def test_load_puts_a_model_on_the_device_that_it_is_given(how, device, tmp_path):
    gpucnn.save(tmp_path / "own.safetensors", models.lenet5(), "lenet5")
    where = (device,) if how == "second" else ()
    options = {} if how == "second" else {"device": device}
    path = tmp_path / "own.safetensors"
    for model in (
        gpucnn.load(path, *where, **options),
        gpucnn.load(path, models.lenet5(), device=device),
    ):
        assert {p.device for p in model.parameters()} == {Device.parse(device)}


def test_without_a_model_to_load_into_the_error_says_how(tmp_path):
    path = tmp_path / "own.safetensors"
    gpucnn.save(path, Own())
    with pytest.raises(CheckpointError, match=r"of your own, Own, .*\n.*gpucnn\.load\(.*, model\)"):
        gpucnn.load(path)
    with pytest.raises(ArgumentError, match="expected a Module to load into, got a dict"):
        gpucnn.load(path, {})
    write_checkpoint(path, {"optimizer.v": np.ones(3)}, {})
    with pytest.raises(CheckpointError, match=r"own\.safetensors: holds no model"):
        gpucnn.load(path, Own())


def test_a_model_that_does_not_fit_is_named_tensor_by_tensor_and_stays_as_it_was(tmp_path):
    path = tmp_path / "own.safetensors"
    gpucnn.save(path, Own(width=7))
    other = Own()
    before = {key: array.copy() for key, array in other.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"first\.weight: expected \(5, 4\), got \(7, 4\)"
    ) as caught:
        gpucnn.load(path, other)
    assert str(path) in str(caught.value)
    assert all(np.array_equal(before[key], x) for key, x in other.state_dict().items())
    with pytest.raises(CheckpointError, match=r"(?s)missing: 0\.weight.*unexpected: first\.weight"):
        gpucnn.load(path, nn.Sequential(nn.Linear(4, 5)))


def test_another_floating_dtype_is_converted_and_any_other_refused(tmp_path):
    path = tmp_path / "own.safetensors"
    one = Own().astype(np.float64)
    gpucnn.save(path, one)
    loaded = gpucnn.load(path, Own())
    assert loaded.first.weight.dtype == np.float32
    assert np.array_equal(loaded.first.weight.data, one.first.weight.data.astype(np.float32))
    state = {f"model.{key}": x.astype(np.int64) for key, x in one.state_dict().items()}
    write_checkpoint(path, state, {})
    with pytest.raises(CheckpointError, match=r"first\.weight: expected float32, got int64"):
        gpucnn.load(path, Own())
    with pytest.raises(CheckpointError, match="temperature: expected an array, got list"):
        loaded.load_state_dict({**loaded.state_dict(), "temperature": [1]})


def test_values_that_are_not_finite_are_loaded_as_they_are(tmp_path):
    model = models.lenet5()
    model[0].weight.data[0] = np.nan
    state = {f"model.{name}": array for name, array in model.state_dict().items()}
    write_checkpoint(tmp_path / "a.safetensors", state, {"model": {"name": "lenet5"}})
    loaded = gpucnn.load(tmp_path / "a.safetensors")
    assert loaded[0].weight.data.tobytes() == model[0].weight.data.tobytes()
