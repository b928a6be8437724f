"""Every model exported to ONNX and run in onnxruntime gives gpucnn's logits."""

import numpy as np
import pytest

import gpucnn
from gpucnn import export_onnx, models, nn, ops
from gpucnn.commands import main
from gpucnn.errors import ArgumentError, MissingExtra, OutputError

CONFIGS = {"mlp": {"sizes": [4, 6, 6, 6, 6, 3]}}
LARGE = ("alexnet", "alexnet_torchvision", "alexnet_keras", "vgg16_cifar")


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx", reason="needs onnx")


def check(model, shape, path, rng, n=3, tolerance=1e-5):
    """Export, run in onnxruntime and compare; return the exported graph."""
    runtime = pytest.importorskip("onnxruntime", reason="the oracle is onnxruntime")
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    export_onnx(model, path, shape)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = rng.standard_normal((n, *shape), dtype=np.float32)
    with gpucnn.no_grad():
        expected = model.eval()(gpucnn.tensor(x)).numpy()
    (actual,) = session.run(["output"], {"input": x})
    assert actual.shape == expected.shape
    scale = max(float(np.abs(expected).max()), 1e-3)
    assert np.abs(actual - expected).max() < tolerance * scale
    return onnx.load(str(path), load_external_data=False).graph


def with_statistics(model, rng):
    """Give the model random running statistics and scales, as if it had been trained."""
    for _, module in model.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                tensor.data[...] = 0.2 * rng.standard_normal(tensor.shape)
            for tensor in (module.running_var, module.weight):
                tensor.data[...] = 0.5 + rng.random(tensor.shape)
    return model


@pytest.mark.parametrize("name", [name for name in models.BY_NAME if name not in LARGE])
def test_onnxruntime_gives_the_same_logits(name, rng, tmp_path):
    config = CONFIGS.get(name, {})
    model = with_statistics(models.build(name, **config), rng)
    check(model, models.input_shape(name, **config), tmp_path / "model.onnx", rng)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_onnxruntime_gives_the_same_logits_for_large_models(name, rng, tmp_path):
    model = with_statistics(models.build(name, classes=10), rng)
    check(model, models.input_shape(name), tmp_path / "model.onnx", rng, n=1)
    (tmp_path / "model.onnx").unlink()  # hundreds of megabytes


def test_adaptive_pooling_is_exported_for_other_sizes(rng, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d((4, 3)), nn.Flatten())
    check(model, (11, 9, 3), tmp_path / "model.onnx", rng)


class EveryOp(nn.Module):
    """Ops that no network in models uses, in both layouts and with broadcasting."""

    def __init__(self):
        self.conv = nn.Conv2d(3, 6, 3, stride=(1, 2), padding=((0, 1), (2, 1)), dilation=(2, 1))
        self.scale = nn.Parameter(np.linspace(0.5, 1.5, 6, dtype=np.float32))
        self.dense = nn.Linear(6, 5, bias=False)

    def forward(self, x):
        y = self.conv(ops.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), 0.5))
        y = ops.gelu(y) * self.scale - ops.leaky_relu(ops.gelu(y, "tanh"), 0.2)
        y = ops.concatenate([y, ops.exp(-y)], axis=3)
        y = ops.log(ops.sqrt(y * y + 1.0)) / (ops.sigmoid(y) + 2.0)
        y = ops.transpose(y, (0, 2, 3, 1))
        y = ops.reshape(y, (len(y), -1, 6))
        return ops.log_softmax(self.dense(y)) + ops.softmax(self.dense(y), axis=1)


def test_every_other_op_agrees_too(rng, tmp_path):
    graph = check(EveryOp(), (9, 10, 3), tmp_path / "model.onnx", rng)
    used = {node.op_type for node in graph.node}
    assert {"Pad", "Gelu", "LeakyRelu", "Concat", "Neg", "LogSoftmax", "MatMul"} <= used


@pytest.mark.parametrize("layer", [
    nn.AvgPool2d(3, 2, padding=1),
    nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    nn.AvgPool2d(3, 2, ceil_mode=True),
    nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False),
    nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
    nn.MaxPool2d((2, 3), padding="same"),
    nn.LocalResponseNorm(3, 0.5, 0.6, 1.5),
    nn.BatchNorm2d(4),
], ids=repr)  # fmt: skip
def test_pooling_and_normalisation_agree_at_the_edges(layer, rng, tmp_path):
    check(with_statistics(layer, rng), (8, 10, 4), tmp_path / "model.onnx", rng)


@pytest.mark.parametrize("layer", [
    nn.SiLU(),
    nn.Softplus(2.0),
    nn.Identity(),
    nn.GroupNorm(2, 4),
    nn.GroupNorm(4, 4, affine=False),
    nn.LayerNorm(4),
    nn.LayerNorm((10, 4), bias=False),
    nn.LayerNorm((8, 10, 4), elementwise_affine=False),
    nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2),
    nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), ((0, 1), (2, 1)), (1, 0), 1, False, (2, 1)),
    nn.Upsample(scale_factor=2),
    nn.Upsample(scale_factor=(1.7, 0.8), mode="bilinear"),
    nn.Upsample((5, 23)),
    nn.Upsample((1, 13), mode="bilinear", align_corners=True),
], ids=repr)  # fmt: skip
def test_normalisations_smooth_activations_and_upsampling_agree(layer, rng, tmp_path):
    for parameter in layer.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape)
    channels = 6 if isinstance(layer, nn.ConvTranspose2d) else 4
    for model in (layer, nn.Sequential(nn.Conv2d(4, 4, 1), layer, nn.Conv2d(channels, 3, 1))):
        if not isinstance(model, nn.Identity):  # alone it computes nothing
            check(model, (8, 10, 4), tmp_path / "model.onnx", rng)


def test_group_norm_of_vectors_agrees(rng, tmp_path):
    check(nn.GroupNorm(3, 6), (6,), tmp_path / "model.onnx", rng)


def test_batch_norm_of_vectors_agrees(rng, tmp_path):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh())
    check(with_statistics(model, rng), (4,), tmp_path / "model.onnx", rng)


@pytest.mark.parametrize("shape", [(4,), (5, 4)], ids=["rows", "stacks of rows"])
def test_a_relu_that_is_fused_into_another_layer_is_exported(shape, rng, tmp_path):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.ReLU())
    graph = check(model, shape, tmp_path / "model.onnx", rng)
    assert [node.op_type for node in graph.node].count("Relu") == 2


def test_a_relu_that_is_fused_into_batch_norm_is_exported(rng, tmp_path):
    model = nn.Sequential(with_statistics(nn.BatchNorm1d(4), rng), nn.ReLU())
    graph = check(model, (4,), tmp_path / "model.onnx", rng)
    assert [node.op_type for node in graph.node].count("Relu") == 1


def test_a_file_exported_under_autocast_is_that_of_float32(onnx, tmp_path):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1, generator=np.random.default_rng(1))

        def forward(self, x):
            return x + self.conv(x)  # autocast would widen the second

    model, files = Residual(), [tmp_path / "plain.onnx", tmp_path / "autocast.onnx"]
    export_onnx(model, files[0], (4, 4, 3))
    with gpucnn.autocast("float16"):
        export_onnx(model, files[1], (4, 4, 3))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_images_are_transposed_at_the_start_and_before_the_dense_layers_only(onnx, tmp_path):
    export_onnx(models.lenet(), tmp_path / "model.onnx", (28, 28, 1))
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    assert [node.op_type for node in graph.node] == (
        "Transpose Conv Relu MaxPool Conv Relu MaxPool Transpose Reshape Gemm Relu Gemm Identity"
    ).split()
    assert {initializer.name for initializer in graph.initializer} > {
        "0.weight",
        "0.bias",
        "9.weight",
    }


def test_export_leaves_the_model_unchanged_and_omits_dropout(onnx, tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    mean = model[2].running_mean.data.copy()
    export_onnx(model, tmp_path / "model.onnx", (4,))
    assert all(module.training for _, module in model.named_modules())
    assert np.array_equal(model[2].running_mean.data, mean)
    assert all(parameter.grad is None for parameter in model.parameters())
    operations = [node.op_type for node in onnx.load(str(tmp_path / "model.onnx")).graph.node]
    assert operations == ["Gemm", "BatchNormalization", "Identity"]


class Slice(nn.Module):
    def forward(self, x):
        return x[:, 1:]


class Constant(nn.Module):
    def forward(self, x):
        return gpucnn.tensor([1.0])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Slice(), "cannot translate the op 'getitem'"),
        (Constant(), "does not depend on its input"),
        (nn.LocalResponseNorm(4), "only for odd sizes"),
        (nn.Sequential(nn.Reshape(64, 4), nn.GroupNorm(2, 4)), "group_norm of shape"),
        (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), "ONNX has no avg_pool2d"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_no_file(model, message, onnx, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        export_onnx(model, tmp_path / "model.onnx", (8, 8, 4))
    assert not (tmp_path / "model.onnx").exists()


def test_a_file_that_cannot_be_written_is_named(onnx, tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        export_onnx(nn.Linear(4, 3), tmp_path / "none" / "model.onnx", (4,))


def test_without_onnx_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingExtra, match=r'needs onnx: pip install "gpucnn\[onnx\]"'):
        export_onnx(nn.Linear(4, 3), tmp_path / "model.onnx", (4,))


def test_the_command_exports_a_checkpoint_with_its_names(onnx, tmp_path, capsys):
    normalize = gpucnn.data.Normalize((0.1,), (0.3,))
    checkpoint, target = tmp_path / "best.safetensors", tmp_path / "model.onnx"
    gpucnn.save(checkpoint, models.lenet5(), "lenet5", None, list("abcdefghij"), normalize)
    assert main(["export", str(checkpoint), str(target)]) == 0
    assert "lenet5, input (N, 28, 28, 1)" in capsys.readouterr().out
    properties = {entry.key: entry.value for entry in onnx.load(str(target)).metadata_props}
    assert properties == {
        "classes": '["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]',
        "normalize": '{"mean": [0.1], "std": [0.3]}',
    }


def test_a_checkpoint_is_not_exported_onto_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gpucnn.save("a", models.lenet5(), "lenet5")
    (tmp_path / "link").symlink_to("a")
    before = (tmp_path / "a").read_bytes()
    for target in ("a", "./a", "link"):
        assert main(["export", "a", target]) == 2
        assert f"export: {target} is the file to read, a" in capsys.readouterr().err
    assert (tmp_path / "a").read_bytes() == before
