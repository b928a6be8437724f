"""The default of every optional argument of the public functions and classes that compute."""

import inspect

import pytest

from gpucnn import data, models, nn, ops, optim, train
from gpucnn.ops.geometry import Geometry

DEFAULTS = {
    ops.MaxPool: {"stride": None, "padding": 0, "ceil_mode": False},
    ops.avg_pool2d: {
        "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True,
    },
    ops.batch_norm: {"momentum": 0.1, "eps": 1e-5, "relu": False, "gelu": False},
    ops.clamp: {"min": None, "max": None},
    ops.binary_cross_entropy_with_logits: {
        "weight": None, "reduction": "mean", "pos_weight": None,
    },
    ops.concatenate: {"axis": 0},
    ops.conv2d: {
        "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "relu": False,
        "pool": None,
    },
    ops.conv_transpose2d: {
        "bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1,
    },
    ops.cross_entropy: {"weight": None, "label_smoothing": 0.0, "reduction": "mean"},
    ops.dropout: {"training": True, "generator": None},
    ops.gelu: {"approximate": "none"},
    ops.group_norm: {"weight": None, "bias": None, "eps": 1e-5},
    ops.interpolate: {
        "size": None, "scale_factor": None, "mode": "nearest", "align_corners": None,
    },
    ops.l1_loss: {"reduction": "mean"},
    ops.layer_norm: {"weight": None, "bias": None, "eps": 1e-5},
    ops.leaky_relu: {"negative_slope": 0.01},
    ops.linear: {"bias": None, "relu": False},
    ops.local_response_norm: {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0},
    ops.log_softmax: {"axis": -1},
    ops.max: {"axis": None, "keepdims": False},
    ops.max_pool2d: {"stride": None, "padding": 0, "ceil_mode": False},
    ops.mean: {"axis": None, "keepdims": False},
    ops.min: {"axis": None, "keepdims": False},
    ops.nll_loss: {"weight": None, "reduction": "mean"},
    ops.pad: {"value": 0.0},
    ops.smooth_l1_loss: {"reduction": "mean", "beta": 1.0},
    ops.softmax: {"axis": -1},
    ops.squeeze: {"axis": None},
    ops.stack: {"axis": 0},
    ops.softplus: {"beta": 1.0},
    ops.sum: {"axis": None, "keepdims": False},
    ops.transpose: {"axes": None},
    ops.var: {"axis": None, "keepdims": False},
    Geometry.of: {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "ceil_mode": False},
    optim.SGD: {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False},
    optim.Adam: {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    optim.AdamW: {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
    optim.GradScaler: {
        "device": None, "init_scale": 2.0**16, "growth_factor": 2.0, "backoff_factor": 0.5,
        "growth_interval": 2000, "enabled": True,
    },
    optim.Muon: {
        "lr": 0.24, "momentum": 0.6, "nesterov": True, "ns_steps": 3, "weight_decay": 0.0,
        "rescale": True, "eps": 1e-7,
    },
    optim.clip_grad_norm_: {},
    optim.lr_scheduler.StepLR: {"gamma": 0.1},
    optim.lr_scheduler.LinearLR: {"start_factor": 1 / 3, "end_factor": 1.0, "total_iters": 5},
    optim.lr_scheduler.CosineAnnealingLR: {"eta_min": 0.0},
    optim.lr_scheduler.TriangularLR: {"pct_start": 0.25},
    optim.lr_scheduler.LambdaLR: {"freeze_at_zero": False},
    optim.lr_scheduler.SequentialLR: {},
    nn.BCEWithLogitsLoss: {"weight": None, "reduction": "mean", "pos_weight": None},
    nn.GELU: {"approximate": "none"},
    nn.GroupNorm: {"eps": 1e-5, "affine": True, "bias": True},
    nn.L1Loss: {"reduction": "mean"},
    nn.LayerNorm: {"eps": 1e-5, "elementwise_affine": True, "bias": True},
    nn.LeakyReLU: {"negative_slope": 0.01},
    nn.NLLLoss: {"weight": None, "reduction": "mean"},
    nn.SmoothL1Loss: {"reduction": "mean", "beta": 1.0},
    nn.Softplus: {"beta": 1.0},
    nn.Upsample: {
        "size": None, "scale_factor": None, "mode": "nearest", "align_corners": None,
    },
    nn.Softmax: {"axis": -1},
    nn.LogSoftmax: {"axis": -1},
    models.SixViews: {"shift": 1},
    data.CIFAR10: {"root": None, "train": True, "download": False},
    data.CIFAR100: {"root": None, "train": True, "download": False, "coarse": False},
    data.ColorNoise: {"std": 0.1},
    data.DataLoader: {
        "shuffle": False, "drop_last": False, "transform": None, "seed": 0, "prefetch": 2,
        "num_workers": 1, "device": None,
    },
    data.Dataset: {"classes": None, "name": "dataset"},
    data.FashionMNIST: {"root": None, "train": True, "download": False},
    data.ImageFolder: {"on_error": "raise", "follow_links": False},
    data.MNIST: {"root": None, "train": True, "download": False},
    data.RandomCrop: {"padding": 0, "padding_mode": "reflect"},
    data.RandomHorizontalFlip: {"p": 0.5},
    data.Synthetic: {"train": True, "n": None, "seed": 0},
    data.find_cifar10: {"root": None, "download": True, "quiet": False},
    train.Checkpoints: {"every": 0, "keep": 2, "seconds": 0},
    train.EarlyStopping: {
        "monitor": "test_loss", "patience": 3, "min_delta": 0.0, "mode": None,
    },
    train.GradientNorm: {"by_layer": False},
    train.JSONLines: {"every": 0},
    train.Logger: {"every": 0},
    train.ModelCheckpoint: {"monitor": "test_loss", "mode": None, "save_top_k": 1},
    train.ProgressBar: {"refresh": 1},
    train.TensorBoard: {"every": 50},
    train.WandbLogger: {"project": None, "name": None, "id": None, "every": 50},
    train.TimeLimit: {"since": None},
    train.Trainer: {
        "test_loader": None, "scheduler": None, "loss": ops.cross_entropy, "callbacks": (),
        "info": None, "on_nan": "stop", "comm": None, "grad_dtype": None, "graph": None,
        "precision": None, "test_metrics": None, "verbose": True,
        "micro_batches": 1,
    },
    train.confusion_matrix: {"classes": None},
    train.confusion_table: {"classes": None, "width": 100},
    train.evaluate: {"comm": None, "metrics": None},
    train.find_lr: {"min_lr": 1e-6, "max_lr": 10.0, "steps": 100},
    train.precision_recall: {"classes": None},
    train.top_k_accuracy: {"k": 5},
    train.read_checkpoint: {"model": None},
}  # fmt: skip


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


@pytest.mark.parametrize("function", DEFAULTS, ids=lambda f: f.__qualname__)
def test_an_optional_argument_has_the_documented_default(function):
    assert defaults(function) == DEFAULTS[function]


@pytest.mark.parametrize("package", [data, ops, train], ids=lambda package: package.__name__)
def test_every_function_with_an_optional_argument_is_listed(package):
    functions = {getattr(package, name) for name in package.__all__}
    functions -= {data.DataNotFound, data.Transform}  # an exception and a type
    assert {f for f in functions if defaults(f)} <= DEFAULTS.keys()


def test_the_defaults_of_the_optimizers_are_pytorchs():
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    for kind in (optim.SGD, optim.Adam, optim.AdamW):
        theirs = defaults(getattr(torch.optim, kind.__name__))
        for name, value in DEFAULTS[kind].items():
            assert value == theirs[name], (kind, name)
