import inspect
import json
from itertools import pairwise

import numpy as np
import pytest
from devices import assert_close, host, tensor

import gpucnn
from gpucnn import models, nn
from gpucnn.errors import ArgumentError, ShapeError

SMALL = (
    "alexnet_cifar10",
    "cuda_convnet_18pct",
    "lenet",
    "lenet5",
    "resnet18_cifar",
    "speedrun_cifar10",
)
OF_IMAGES = tuple(name for name in models.BY_NAME if name != "mlp")


def images(name, rng, n=2, **config):
    shape = (n, *models.input_shape(name, **config))
    return gpucnn.tensor(rng.standard_normal(shape, dtype=np.float32))


@pytest.mark.parametrize("name", SMALL)
def test_a_model_gives_logits_and_every_parameter_gets_a_gradient(name, device, rng):
    model = models.build(name, classes=7).to(device)
    logits = model(images(name, rng).to(device))
    assert logits.shape == (2, 7)
    assert logits.dtype == np.float32
    logits.sum().backward()
    assert all(np.isfinite(host(p.grad)).all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", SMALL)
def test_logits_on_a_gpu_equal_those_on_the_cpu(name, gpu, conv_algorithm, rng):
    conv_algorithm("exact")  # Winograd's own rounding on the CPU would add to the kernels'
    x, model = images(name, rng), models.build(name, classes=7).eval()
    with gpucnn.no_grad():
        expected = model(x).numpy()
        assert_close(model.to(gpu)(x.to(gpu)), expected)


@pytest.mark.parametrize("name", SMALL)
def test_channels_may_be_other_than_usual(name, rng):
    model = models.build(name, channels=2).eval()
    with gpucnn.no_grad():
        assert model(images(name, rng, n=1, channels=2)).shape == (1, 10)


@pytest.mark.parametrize("name", ["cuda_convnet_18pct", "lenet5"])
def test_the_same_generator_gives_the_same_weights_without_advancing_the_default_one(name):
    before = gpucnn.default_generator().bit_generator.state["state"]["counter"].copy()
    one, other = (
        models.build(name, generator=np.random.default_rng(5)).state_dict() for _ in range(2)
    )
    assert all(np.array_equal(one[key], other[key]) for key in one)
    after = gpucnn.default_generator().bit_generator.state["state"]["counter"]
    assert np.array_equal(before, after)


def test_every_model_has_plain_configuration_a_generator_and_a_docstring():
    for name, builder in models.BY_NAME.items():
        parameters = inspect.signature(builder).parameters
        assert parameters["generator"].default is None, name
        for parameter in parameters.values():
            if parameter.default is not inspect.Parameter.empty:
                json.dumps(parameter.default)
        assert builder.__doc__
        assert getattr(models, name) is builder
        assert name in models.__all__


@pytest.mark.parametrize("name", OF_IMAGES)
def test_input_shape_follows_the_configuration(name):
    side, _, _ = models.input_shape(name)
    assert models.input_shape(name, channels=5) == (side, side, 5)
    assert models.input_shape("mlp", sizes=[4, 6, 1]) == (4,)


def test_the_errors_for_unknown_names_and_configurations_list_the_known_ones():
    with pytest.raises(ArgumentError, match=r"'alexnot' is unknown; expected one of alexnet, "):
        models.build("alexnot")
    with pytest.raises(ArgumentError, match=r"alexnet\(classes"):
        models.build("alexnet", depth=3)
    with pytest.raises(ArgumentError, match="missing a required argument: 'sizes'"):
        models.input_shape("mlp")
    with pytest.raises(ArgumentError, match="unknown"):
        models.input_shape("alexnot")


# --- mlp ---


@pytest.mark.parametrize(("sizes", "count"), [((4, 6, 1), 37), ((4, 6, 6, 6, 6, 3), 177)])
def test_the_recap_networks_have_the_parameters_counted_by_hand(sizes, count, rng):
    model = models.mlp(sizes)
    by_hand = sum((a + 1) * b for a, b in pairwise(sizes))
    assert sum(p.size for p in model.parameters()) == by_hand == count
    x = gpucnn.tensor(rng.standard_normal((5, 4), dtype=np.float32))
    assert model(x).shape == (5, sizes[-1])


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", lambda v: np.maximum(v, 0)),
        ("tanh", np.tanh),
        ("sigmoid", lambda v: 1 / (1 + np.exp(-v))),
    ],
)
def test_an_mlp_computes_its_formula_on_images_too(activation, function, device, rng):
    model = models.mlp([12, 5, 3], activation).astype(np.float64)
    x = rng.standard_normal((4, 2, 2, 3))
    first, last = model[1], model[3]
    hidden = function(x.reshape(4, 12) @ first.weight.data.T + first.bias.data)
    expected = hidden @ last.weight.data.T + last.bias.data
    assert_close(model.to(device)(tensor(x, device)), expected)


def test_an_mlp_refuses_one_size_or_a_strange_activation():
    with pytest.raises(ArgumentError, match="two sizes"):
        models.mlp([4])
    with pytest.raises(ArgumentError, match="relu, tanh, sigmoid"):
        models.mlp([4, 1], "step")


# --- LeNet, VGG, ResNet ---


@pytest.mark.parametrize(("name", "count"), [("lenet5", 61_706), ("lenet", 431_080)])
def test_lenets_have_the_parameters_of_their_sources(name, count):
    assert sum(p.size for p in models.build(name).parameters()) == count


def test_vgg16_has_thirteen_convolutions_and_three_dense_layers_counted_by_hand():
    model = models.vgg16_cifar()
    kinds = [type(layer) for layer in model]
    assert kinds.count(nn.Conv2d) == 13
    assert kinds.count(nn.Linear) == 3
    widths = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    convolutions = sum(9 * c * oc for c, oc in pairwise(widths))
    norms = 2 * sum(widths[1:])
    dense = 2 * 513 * 512 + 513 * 10
    trained = sum(p.size for p in model.parameters())
    assert trained == convolutions + norms + dense == 15_249_354
    summary = nn.summary(model, (32, 32, 3))
    pools = [layer.output_shape for layer in summary.layers if layer.layer.startswith("MaxPool2d")]
    assert pools == [(16, 16, 64), (8, 8, 128), (4, 4, 256), (2, 2, 512), (1, 1, 512)]


def test_resnet18_has_the_parameters_and_stages_of_its_source():
    model = models.resnet18_cifar()
    assert sum(p.size for p in model.parameters()) == 11_173_962
    assert sum(b.size for _, b in model.named_buffers()) == 9_600
    summary = nn.summary(model, (32, 32, 3))
    convolutions = [layer for layer in summary.layers if layer.layer.startswith("Conv2d")]
    assert len(convolutions) == 17 + 3  # three in shortcuts; the dense layer is the 18th
    assert convolutions[-1].output_shape == (4, 4, 512)


@pytest.mark.parametrize(("c", "oc", "stride"), [(4, 4, 1), (4, 6, 2), (4, 6, 1)])
@pytest.mark.parametrize("training", [True, False])
def test_a_residual_block_agrees_with_pytorch(c, oc, stride, training, device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    F = torch.nn.functional
    block = models.resnet.BasicBlock(c, oc, stride).astype(np.float64).train(training)
    for parameter in block.parameters():
        parameter.data[...] += 0.3 * rng.standard_normal(parameter.shape)
    x = rng.standard_normal((3, 6, 6, c))
    state = {name: torch.tensor(value) for name, value in block.state_dict().items()}

    def conv(y, name, stride):
        w = state[f"{name}.weight"].permute(0, 3, 1, 2)
        return F.conv2d(y, w, None, stride, padding=w.shape[-1] // 2)

    def norm(y, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(y, *(state[f"{name}.{key}"].clone() for key in keys), training)

    x_t = torch.tensor(x.transpose(0, 3, 1, 2))
    y = norm(conv(x_t, "body.0", stride), "body.1").relu()
    y = norm(conv(y, "body.3", 1), "body.4")
    short = norm(conv(x_t, "shortcut.0", stride), "shortcut.1") if c != oc else x_t
    expected = (y + short).relu().numpy().transpose(0, 2, 3, 1)
    assert_close(block.to(device)(tensor(x, device)), expected)


def test_a_residual_block_whose_body_is_silent_passes_its_input_on(device, current, rng):
    block = models.resnet.BasicBlock(3, 3, 1).to(device)
    block.body[4].weight.data[...] = 0
    x = np.abs(rng.standard_normal((2, 4, 4, 3), dtype=np.float32))
    assert np.array_equal(host(block(tensor(x, device))), x)


def test_images_too_small_for_a_model_are_refused():
    with pytest.raises(ShapeError, match="does not fit"):
        models.lenet().eval()(gpucnn.tensor(np.zeros((1, 4, 4, 1), np.float32)))
