import copy

import numpy as np
import pytest
from devices import assert_close, host, leaf, results, tensor

from gpucnn import nn, ops
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.testing import gradcheck

IMAGES = (2, 6, 7, 4)
LAYERS = [
    (nn.Conv2d(4, 6, (3, 2), stride=2, padding="same", groups=2), (2, 3, 4, 6)),
    (nn.Conv2d(4, 6, 3, dilation=2, bias=False), (2, 2, 3, 6)),
    (nn.Linear(4, 5), (2, 6, 7, 5)),
    (nn.BatchNorm2d(4), IMAGES),
    (nn.LocalResponseNorm(3, 0.1), IMAGES),
    (nn.MaxPool2d(3, 2, padding=1), (2, 3, 4, 4)),
    (nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), (2, 3, 4, 4)),
    (nn.GlobalAvgPool2d(), (2, 4)),
    (nn.AdaptiveAvgPool2d((3, 2)), (2, 3, 2, 4)),
    (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), (2, 12, 14, 6)),
    (nn.ConvTranspose2d(4, 3, (2, 3), bias=False, dilation=2), (2, 8, 11, 3)),
    (nn.Upsample(scale_factor=2), (2, 12, 14, 4)),
    (nn.Upsample((3, 9), mode="bilinear", align_corners=True), (2, 3, 9, 4)),
    (nn.GroupNorm(2, 4), IMAGES),
    (nn.LayerNorm((7, 4)), IMAGES),
    (nn.LayerNorm(4, elementwise_affine=False), IMAGES),
    (nn.Identity(), IMAGES),
    (nn.SiLU(), IMAGES),
    (nn.Softplus(2.0), IMAGES),
    (nn.ReLU(), IMAGES),
    (nn.LeakyReLU(0.1), IMAGES),
    (nn.Sigmoid(), IMAGES),
    (nn.Tanh(), IMAGES),
    (nn.GELU(), IMAGES),
    (nn.Softmax(), IMAGES),
    (nn.LogSoftmax(axis=1), IMAGES),
    (nn.Flatten(), (2, 168)),
    (nn.Reshape(42, 4), (2, 42, 4)),
    (nn.ZeroPad2d(((1, 0), (2, 3))), (2, 7, 12, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda v: getattr(type(v), "__name__", ""))
def test_a_layer_has_its_shape_and_in_float32_agrees_with_float64_on_the_cpu(
    layer, shape, device, rng
):
    values = rng.standard_normal(IMAGES, dtype=np.float32)
    dy = rng.standard_normal(shape, dtype=np.float32)
    runs = []
    for place, dtype in ((device, np.float32), ("cpu", np.float64)):
        own = copy.deepcopy(layer).astype(dtype).to(place)
        x = leaf(values, place, dtype)
        runs.append(results(own(x), dy, x, *own.parameters()))
        runs[-1] += [host(buffer) for _, buffer in own.named_buffers()]
    assert runs[0][0].shape == shape
    assert {a.dtype for a in runs[0]} == {np.dtype(np.float32)}
    for a, e in zip(*runs, strict=True):
        assert_close(a, e)
    assert repr(layer).startswith(type(layer).__name__)


def test_dropout_drops_while_training_and_not_in_evaluation(device):
    layer = nn.Dropout(0.5, generator=np.random.default_rng(3))
    x = tensor(np.ones((100, 100), np.float32), device)
    dropped = host(layer(x))
    assert set(np.unique(dropped)) == {0, 2}
    assert 0.45 < (dropped == 0).mean() < 0.55
    assert layer.eval()(x) is x


def test_losses_are_modules_too(device, rng):
    logits, labels = tensor(rng.standard_normal((3, 4)), device), [0, 1, 3]
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    expected = ops.cross_entropy(logits, labels, label_smoothing=0.1).item()
    assert loss(logits, labels).item() == expected
    summed = nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum")
    assert summed(logits, labels).item() == pytest.approx(3 * expected)
    y, target = (tensor(a, device, np.float32) for a in ([1.0, 3.0], [1.0, 1.0]))
    assert nn.MSELoss()(y, target).item() == 2


def test_a_small_network_passes_gradcheck(device, rng):
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 3),
    ).astype(np.float64)
    names = [name for name, _ in model.named_parameters()]

    def run(x, *values):
        for name, value in zip(names, values, strict=True):
            owner, attribute = model[int(name.split(".")[0])], name.split(".")[1]
            delattr(owner, attribute)  # a tensor that is not a parameter may not replace one
            setattr(owner, attribute, value)
        return model(x)

    parameters = [p.numpy() for p in model.to(device).parameters()]
    gradcheck(run, rng.standard_normal((2, 4, 4, 2)), *parameters, device=device)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Conv2d(0, 3, 3), "in_channels must be a positive int, got 0"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups=2 must divide in_channels=3"),
        (lambda: nn.Conv2d(3, 4, 0), "kernel_height must be a positive int"),
        (lambda: nn.Linear(2.0, 3), "in_features must be a positive int, got 2.0"),
        (lambda: nn.Dropout(1.0), r"p must be in \[0, 1\), got 1.0"),
        (lambda: nn.BatchNorm2d(-1), "BatchNorm2d: num_features must be a positive int"),
        (lambda: nn.ConvTranspose2d(3, 4, 3, groups=2), "groups=2 must divide in_channels=3"),
        (lambda: nn.ConvTranspose2d(3, 0, 3), "ConvTranspose2d: out_channels must be a positive"),
        (lambda: nn.GroupNorm(3, 4), "num_groups=3 must divide num_channels=4"),
        (lambda: nn.LayerNorm((4, 0)), r"LayerNorm: normalized_shape\[1\] must be a positive int"),
        (lambda: nn.Upsample(), "Upsample: expected either size or scale_factor"),
        (lambda: nn.BatchNorm1d(0), "BatchNorm1d: num_features must be a positive int"),
    ],
)
def test_settings_out_of_range_are_refused_when_the_layer_is_built(build, message):
    with pytest.raises(ArgumentError, match=message):
        build()


def test_the_error_for_other_channels_names_their_number(device):
    with pytest.raises(ShapeError, match="3 channels"):
        nn.Conv2d(16, 32, 3).to(device)(tensor(np.zeros((1, 8, 8, 3), np.float32), device))


def test_identity_takes_any_argument_and_returns_its_input(device):
    x = tensor(np.ones((2, 3)), device)
    assert nn.Identity(5, unused=True)(x) is x


def test_a_group_norm_refuses_other_channels():
    with pytest.raises(ShapeError, match=r"GroupNorm: expected 4 channels .* got shape \(2, 8\)"):
        nn.GroupNorm(2, 4)(tensor(np.ones((2, 8)), "cpu", np.float32))


def test_the_weights_of_pytorchs_decoder_load_and_give_its_images(device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")

    def build(nn):
        return nn.Sequential(
            nn.ConvTranspose2d(6, 8, 3, 2, 1, 1, groups=2), nn.GroupNorm(2, 8), nn.SiLU(),
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 4, 3), nn.Softplus(),
            nn.Identity(), nn.ConvTranspose2d(4, 3, 2, bias=False),
        )  # fmt: skip

    theirs, ours = build(torch.nn), build(nn)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    assert list(state) == list(ours.state_dict())
    # the conversion of docs/coming_from_pytorch.md
    state = {n: a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for n, a in state.items()}
    ours.load_state_dict(state)
    x = rng.standard_normal((2, 4, 5, 6), dtype=np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    assert_close(ours.to(device)(tensor(x, device)), expected.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("shape", [(5, 3), (5, 4, 3)])
def test_batch_norm_of_vectors_and_sequences_agrees_with_pytorch(shape, device, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    ours, theirs = nn.BatchNorm1d(3, 1e-3, 0.2), torch.nn.BatchNorm1d(3, 1e-3, 0.2).double()
    values, dy = rng.standard_normal(shape), rng.standard_normal(shape)
    ours.astype(np.float64).to(device)
    x = leaf(values, device)
    y, *gradients = results(ours(x), dy, x, ours.weight, ours.bias)
    channels_first = (0, 2, 1) if len(shape) == 3 else (0, 1)
    xt = torch.tensor(values.transpose(channels_first), requires_grad=True)
    expected = theirs(xt)
    expected.backward(torch.tensor(dy.transpose(channels_first)))
    assert_close(y, expected.detach().numpy().transpose(channels_first))
    assert_close(gradients[0], xt.grad.numpy().transpose(channels_first))
    assert_close(gradients[1], theirs.weight.grad.numpy())
    assert_close(gradients[2], theirs.bias.grad.numpy())
    assert_close(ours.running_mean, theirs.running_mean.numpy())
    assert_close(ours.running_var, theirs.running_var.numpy())
    assert set(ours.state_dict()) == set(theirs.state_dict()) - {"num_batches_tracked"}


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.BatchNorm2d(3), (5, 3), r"images \(N, H, W, C\), got shape \(5, 3\)\n.* BatchNorm1d"),
        (nn.BatchNorm2d(3), (5, 4, 3), "BatchNorm2d: expected images"),
        (nn.BatchNorm1d(3), (5, 2, 2, 3), "BatchNorm1d: expected vectors .*\n.* BatchNorm2d"),
        (nn.BatchNorm1d(3), (3,), "BatchNorm1d: expected vectors"),
    ],
)
def test_batch_norm_of_the_wrong_number_of_axes_says_which_layer_to_use(layer, shape, message):
    with pytest.raises(ShapeError, match=message):
        layer(tensor(np.ones(shape), "cpu", np.float32))


ALIKE = [
    ("Conv2d", (4, 6, (3, 2)), {"stride": (2, 2), "padding": (1, 1), "groups": 2, "bias": False}),
    ("Conv2d", (4, 6, (3, 3)), {"stride": (1, 1), "padding": (2, 2), "dilation": (2, 2)}),
    ("Linear", (4, 5), {"bias": False}),
    ("Linear", (4, 5), {}),
    ("AdaptiveAvgPool2d", ((3, 2),), {}),
    ("LeakyReLU", (0.1,), {}),
    ("LocalResponseNorm", (5, 0.1, 0.75, 2.0), {}),
    ("ReLU", (), {}),
    ("SiLU", (), {}),
    ("Identity", (), {}),
    ("GroupNorm", (2, 4), {}),
    ("GroupNorm", (2, 4), {"affine": False}),
    ("LayerNorm", ((3, 4),), {}),
    ("LayerNorm", (4,), {"bias": False}),
    ("GroupNorm", (2, 4), {"bias": False}),
    (
        "ConvTranspose2d",
        (4, 6, (3, 2), (2, 2), (1, 1), (1, 1)),
        {"groups": 2, "dilation": (2, 2), "bias": False},
    ),
    ("CrossEntropyLoss", (), {"label_smoothing": 0.1}),
    ("MSELoss", (), {}),
]


@pytest.mark.parametrize(("name", "args", "settings"), ALIKE)
def test_a_layer_has_the_arguments_and_the_repr_of_pytorchs(name, args, settings):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    ours, theirs = (getattr(module, name)(*args, **settings) for module in (nn, torch.nn))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.BatchNorm2d(3), "BatchNorm2d(3, eps=1e-05, momentum=0.1)"),
        (nn.MaxPool2d(3, 2), "MaxPool2d(kernel_size=3, stride=2, padding=0, ceil_mode=False)"),
        (nn.Dropout(0.2), "Dropout(p=0.2)"),
        (nn.Softplus(), "Softplus(beta=1.0)"),
        (nn.Upsample(3), "Upsample(size=3, mode='nearest')"),
        (
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            "Upsample(scale_factor=2, mode='bilinear', align_corners=True)",
        ),
        (nn.L1Loss(), "L1Loss(reduction='mean')"),
        (nn.SmoothL1Loss("sum", 0.5), "SmoothL1Loss(reduction='sum', beta=0.5)"),
        (nn.NLLLoss(reduction="none"), "NLLLoss(reduction='none')"),
        (nn.BCEWithLogitsLoss(), "BCEWithLogitsLoss(reduction='mean')"),
        (nn.Softmax(), "Softmax(axis=-1)"),
        (nn.Reshape(4, 3), "Reshape(4, 3)"),
        (nn.ZeroPad2d((1, 2)), "ZeroPad2d((1, 2))"),
    ],
    ids=lambda v: getattr(type(v), "__name__", ""),
)
def test_a_repr_names_the_settings(layer, text):
    assert repr(layer) == text
