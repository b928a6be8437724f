"""A call of every public function that works with arrays, for comparing devices.

Each call takes a Target, which creates its tensors, and returns arrays, tensors or numbers, or
tuples, lists, dicts and dataclasses of them.  ARRAYLESS lists the public names that use no array on
a device; tests/test_public_names.py fails unless each public name is in one of the two.
"""

from typing import Any

import numpy as np
from gpu import calls
from gpu.calls import layer, op, stepped

import gpucnn
from gpucnn import data, inspect, models, nn, ops, optim, train
from gpucnn.commands import launches
from gpucnn.commands.warmup import warm_up

OPS: dict[str, Any] = {
    "abs": op(ops.abs, (3, 4)),
    "adaptive_avg_pool2d": op(lambda x: ops.adaptive_avg_pool2d(x, (3, 2)), (2, 8, 8, 3)),
    "add": op(ops.add, (3, 4), (4,)),
    "astype": op(lambda x: ops.astype(x, np.float64), (3, 4)),
    "avg_pool2d": op(lambda x: ops.avg_pool2d(x, 2), (2, 8, 8, 3)),
    "batch_norm": calls.batch_norm,
    "clamp": op(lambda x: ops.clamp(x, -0.5, 0.5), (3, 4)),
    "clone": op(ops.clone, (3, 4)),
    "binary_cross_entropy_with_logits": op(
        lambda x, y: ops.binary_cross_entropy_with_logits(x, y, pos_weight=2.0), (3, 4), (3, 4)
    ),
    "concatenate": op(lambda a, b: ops.concatenate([a, b]), (3, 4), (2, 4)),
    "conv2d": op(lambda x, w: ops.conv2d(x, w, padding=1), (2, 8, 8, 3), (4, 3, 3, 3)),
    "conv_transpose2d": op(
        lambda x, w: ops.conv_transpose2d(x, w, stride=2), (2, 4, 4, 3), (3, 3, 3, 4)
    ),
    "divide": op(ops.divide, (3, 4), (4,), positive=True),
    "dropout": op(lambda x: ops.dropout(x, 0.5), (64,)),
    "eq": calls.compared(ops.eq),
    "exp": op(ops.exp, (3, 4)),
    "flatten": op(ops.flatten, (3, 4, 2)),
    "from_nchw": op(ops.from_nchw, (2, 3, 4, 4)),
    "ge": calls.compared(ops.ge),
    "gelu": op(ops.gelu, (3, 4)),
    "getitem": op(lambda x: ops.getitem(x, ([0, 2, 0], 1)), (3, 4)),
    "global_avg_pool2d": op(ops.global_avg_pool2d, (2, 8, 8, 3)),
    "gt": calls.compared(ops.gt),
    "le": calls.compared(ops.le),
    "group_norm": op(lambda x, w: ops.group_norm(x, 2, w), (2, 8, 8, 4), (4,)),
    "interpolate": op(lambda x: ops.interpolate(x, scale_factor=2, mode="bilinear"), (2, 4, 4, 3)),
    "l1_loss": op(ops.l1_loss, (3, 4), (3, 4)),
    "layer_norm": op(lambda x, w: ops.layer_norm(x, 4, w), (3, 4), (4,)),
    "leaky_relu": op(ops.leaky_relu, (3, 4)),
    "linear": op(ops.linear, (3, 4), (5, 4), (5,)),
    "local_response_norm": op(ops.local_response_norm, (2, 4, 4, 8)),
    "log": op(ops.log, (3, 4), positive=True),
    "log_softmax": op(ops.log_softmax, (3, 4)),
    "lt": calls.compared(ops.lt),
    "matmul": op(ops.matmul, (2, 3, 4), (4, 5)),
    "max": op(lambda x: ops.max(x, axis=1), (3, 4)),
    "max_pool2d": op(lambda x: ops.max_pool2d(x, 3, 2), (2, 8, 8, 3)),
    "mean": op(lambda x: ops.mean(x, axis=0), (3, 4)),
    "mse_loss": op(ops.mse_loss, (3, 4), (3, 4)),
    "min": op(lambda x: ops.min(x, axis=1), (3, 4)),
    "multiply": op(ops.multiply, (3, 4), (4,)),
    "ne": calls.compared(ops.ne),
    "negative": op(ops.negative, (3, 4)),
    "nll_loss": op(lambda x: ops.nll_loss(x, [0, 3, 1], np.arange(4)), (3, 4)),
    "pad": op(lambda x: ops.pad(x, ((1, 0), (0, 2))), (3, 4)),
    "power": op(lambda x: ops.power(x, 3), (3, 4)),
    "relu": op(ops.relu, (3, 4)),
    "reshape": op(lambda x: ops.reshape(x, (4, 3)), (3, 4)),
    "sigmoid": op(ops.sigmoid, (3, 4)),
    "silu": op(ops.silu, (3, 4)),
    "smooth_l1_loss": op(ops.smooth_l1_loss, (3, 4), (3, 4)),
    "softplus": op(ops.softplus, (3, 4)),
    "softmax": op(ops.softmax, (3, 4)),
    "cross_entropy": calls.cross_entropy,
    "softmax_cross_entropy": calls.cross_entropy,
    "sqrt": op(ops.sqrt, (3, 4), positive=True),
    "squeeze": op(ops.squeeze, (3, 1, 4)),
    "stack": op(lambda a, b: ops.stack([a, b], 1), (3, 4), (3, 4)),
    "subtract": op(ops.subtract, (3, 4), (4,)),
    "sum": op(lambda x: ops.sum(x, axis=(0, 2)), (3, 4, 2)),
    "swapaxes": op(lambda x: ops.swapaxes(x, 0, -1), (3, 4, 2)),
    "tanh": op(ops.tanh, (3, 4)),
    "to_device": calls.to_cpu_and_back,
    "to_nchw": op(ops.to_nchw, (2, 4, 4, 3)),
    "transpose": op(ops.transpose, (3, 4)),
    "unsqueeze": op(lambda x: ops.unsqueeze(x, 1), (3, 4)),
    "var": op(lambda x: ops.var(x, axis=0), (3, 4)),
    "where": op(lambda a, b: ops.where(np.eye(3, 4) > 0, a, b), (3, 4), (3, 4)),
}

NN: dict[str, Any] = {
    "AdaptiveAvgPool2d": layer(lambda: nn.AdaptiveAvgPool2d(3)),
    "AvgPool2d": layer(lambda: nn.AvgPool2d(2)),
    "BCEWithLogitsLoss": lambda at: nn.BCEWithLogitsLoss()(at.tensor(3, 4), at.tensor(3, 4)),
    "BatchNorm1d": layer(lambda: nn.BatchNorm1d(4), 3, 4),
    "BatchNorm2d": layer(lambda: nn.BatchNorm2d(3)),
    "Conv2d": layer(lambda: nn.Conv2d(3, 4, 3)),
    "ConvTranspose2d": layer(lambda: nn.ConvTranspose2d(3, 4, 3, stride=2)),
    "Dropout": layer(lambda: nn.Dropout(0.5)),
    "Flatten": layer(nn.Flatten),
    "GELU": layer(nn.GELU),
    "GlobalAvgPool2d": layer(nn.GlobalAvgPool2d),
    "GroupNorm": layer(lambda: nn.GroupNorm(1, 3)),
    "Identity": layer(nn.Identity),
    "L1Loss": lambda at: nn.L1Loss()(at.tensor(3, 4), at.tensor(3, 4)),
    "LayerNorm": layer(lambda: nn.LayerNorm((8, 3))),
    "LeakyReLU": layer(nn.LeakyReLU),
    "Linear": layer(lambda: nn.Linear(5, 4), 3, 5),
    "LocalResponseNorm": layer(nn.LocalResponseNorm),
    "LogSoftmax": layer(nn.LogSoftmax, 3, 4),
    "MaxPool2d": layer(lambda: nn.MaxPool2d(2)),
    "MSELoss": lambda at: nn.MSELoss()(at.tensor(3, 4), at.tensor(3, 4)),
    "Module": calls.module_methods,
    "ModuleDict": lambda at: nn.ModuleDict({"a": nn.Linear(3, 4)}).to(at.name)["a"](
        at.tensor(2, 3)
    ),
    "ModuleList": lambda at: nn.ModuleList([nn.Linear(3, 4)]).to(at.name)[0](at.tensor(2, 3)),
    "NLLLoss": lambda at: nn.NLLLoss()(at.tensor(3, 4), at.labels(3, 4)),
    "ZeroPad2d": layer(lambda: nn.ZeroPad2d(1)),
    "Parameter": lambda at: nn.Parameter(at.tensor(3, 4).data),
    "ReLU": layer(nn.ReLU),
    "Reshape": layer(lambda: nn.Reshape(4, 48)),
    "Sequential": layer(lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(192, 2))),
    "Sigmoid": layer(nn.Sigmoid),
    "SiLU": layer(nn.SiLU),
    "SmoothL1Loss": lambda at: nn.SmoothL1Loss()(at.tensor(3, 4), at.tensor(3, 4)),
    "Softmax": layer(nn.Softmax, 3, 4),
    "Softplus": layer(nn.Softplus),
    "CrossEntropyLoss": lambda at: nn.CrossEntropyLoss(np.ones(4), 0.1)(
        at.tensor(3, 4), at.labels(3, 4)
    ),
    "Tanh": layer(nn.Tanh),
    "Upsample": layer(lambda: nn.Upsample(scale_factor=2)),
    "summary": lambda at: str(nn.summary(at.model(), (8, 8, 3))),
}


OPTIM: dict[str, Any] = {
    "SGD": stepped(lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True)),
    "Adam": stepped(lambda p: optim.Adam(p, 0.001)),
    "AdamW": stepped(lambda p: optim.AdamW(p, 0.001)),
    "Muon": stepped(lambda p: optim.Muon([x for x in p if x.ndim > 1])),
    "MultiOptimizer": stepped(
        lambda p: optim.MultiOptimizer(
            optim.Adam([x for x in p if x.ndim == 1]), optim.Muon([x for x in p if x.ndim > 1])
        )
    ),
    "GradScaler": calls.grad_scaler,
    "clip_grad_norm_": stepped(lambda p: optim.SGD(p, 0.1)),
}

DATA: dict[str, Any] = {
    "DataLoader": lambda at: [
        batch
        for transform in (None, data.Normalize((0.5,) * 3, (0.2,) * 3))
        for batch in at.loader(transform=transform)
    ],
}

TRAIN: dict[str, Any] = {
    "RunningMetrics": calls.running_metrics,
    "Trainer": calls.trained,
    "confusion_matrix": lambda at: train.confusion_matrix(at.tensor(6, 4), at.labels(6, 4)),
    "evaluate": lambda at: train.evaluate(
        at.model(), at.loader(), metrics={"top2": lambda x, t: train.top_k_accuracy(x, t, 2)}
    ),
    "find_lr": calls.learning_rates,
    "precision_recall": lambda at: {
        name: np.nan_to_num(score)
        for name, score in vars(train.precision_recall(at.tensor(6, 4), at.labels(6, 4))).items()
    },
    "top_k_accuracy": lambda at: train.top_k_accuracy(at.tensor(6, 4), at.labels(6, 4), 2),
    "write_checkpoint": calls.checkpoint,
    "read_checkpoint": calls.checkpoint,
}

INSPECT: dict[str, Any] = {
    "UpdateRatios": calls.update_ratios,
    "activations": lambda at: inspect.activations(at.model(), at.images(), batch_size=2),
    "analyze": calls.analyze,
    "before_relu": lambda at: inspect.before_relu(at.model(), at.images(), "2"),
    "deep_dream": lambda at: inspect.deep_dream(at.model(), at.images(), "0", steps=3),
    "feature_maps": lambda at: inspect.feature_maps(at.model(), at.images(), "2"),
    "first_layer_filters": lambda at: inspect.first_layer_filters(at.model()),
    "grad_cam": lambda at: inspect.grad_cam(at.model(), at.images(), classes=1),
    "input_gradient": lambda at: inspect.input_gradient(at.model(), at.images()),
    "maximize_activation": lambda at: inspect.maximize_activation(
        at.model(), "0", [0, 2], (8, 8, 3), steps=3
    ),
    "occlusion": lambda at: inspect.occlusion(at.model(), at.images(), 4, 2),
    "pixel_layers": lambda at: inspect.pixel_layers(at.model(), at.images()),
    "predict": lambda at: inspect.predict(at.model(), at.images(), [0, 1, 2]),
    "saliency": lambda at: inspect.saliency(at.model(), at.images(), [0, 1, 2]),
    "strongest_images": lambda at: inspect.strongest_images(
        at.model(), at.images(), "0", [1, 3], k=2, path=at.folder / "strongest.png"
    ),
    "training_memory": calls.training_memory,
    "update_ratio": lambda at: inspect.update_ratio(at.tensor(50).data, at.tensor(50).data),
    "weight_histograms": lambda at: inspect.weight_histograms(at.model()),
}

MODELS: dict[str, Any] = {
    "SixViews": lambda at: models.SixViews(at.model().eval())(at.tensor(2, 8, 8, 3)),
    "TenViews": lambda at: models.TenViews(at.model().eval(), 8)(at.tensor(2, 10, 9, 3)),
    "build": lambda at: models.build("lenet5").to(at.name)(at.tensor(2, 28, 28, 1)),
}

GPUCNN: dict[str, Any] = {
    "Function": calls.scaled,
    "Tensor": calls.tensor_methods,
    "arange": lambda at: gpucnn.arange(5, device=at.name),
    "cat": OPS["concatenate"],
    "empty": lambda at: gpucnn.empty(0, 3, device=at.name),
    "export_onnx": calls.exported,
    "from_dlpack": lambda at: gpucnn.from_dlpack(calls.Foreign(at.tensor(3, 4).T)),
    "full": lambda at: gpucnn.full((2, 3), 0.5, at.name),
    "load": calls.saved,
    "ones": lambda at: gpucnn.ones(2, 3, device=at.name),
    "ones_like": lambda at: gpucnn.ones_like(at.tensor(2, 3)),
    "rand": lambda at: gpucnn.rand(2, 3, device=at.name),
    "randn": lambda at: gpucnn.randn(2, 3, device=at.name),
    "save": calls.saved,
    "stack": OPS["stack"],
    "tensor": lambda at: [
        gpucnn.tensor(at.tensor(3, 4).data, dtype=np.float64),
        gpucnn.tensor(at.tensor(3, 4), device=at.name),
        gpucnn.tensor(at.tensor(3, 4), device="cpu"),
    ],
    "where": OPS["where"],
    "zeros": lambda at: gpucnn.zeros(2, 3, device=at.name),
    "zeros_like": lambda at: gpucnn.zeros_like(at.tensor(2, 3)),
}

ELSEWHERE: dict[str, Any] = {
    "predict.Classifier": calls.classified,
    "launches.of_model": lambda at: calls.kernels(
        at, lambda: launches.of_model("lenet5", 2, ("batch", "training"), at.device, True)
    ),
    "warmup.warm_up": lambda at: calls.kernels(at, lambda: warm_up("lenet5", at.name, 2)),
    "cuda.Timer": calls.timed,
}

TABLE = {
    f"{module}.{name}".removeprefix("."): call
    for module, entries in {
        "ops": OPS,
        "nn": NN,
        "optim": OPTIM,
        "data": DATA,
        "train": TRAIN,
        "inspect": INSPECT,
        "models": MODELS,
        "gpucnn": GPUCNN,
        "": ELSEWHERE,
    }.items()
    for name, call in entries.items()
}

# Public names that use no array on a device: settings, data on the host, drawings, types, and
# combinations of the functions above.
ARRAYLESS = {
    "gpucnn": """
        Device GpucnnError OutOfMemory __version__ autocast data default_generator device
        enable_grad get_conv_algorithm get_float32_precision get_num_threads inspect manual_seed
        models nn no_grad ops optim set_conv_algorithm set_float32_precision set_num_threads train
        weights
    """,
    "ops": "MaxPool get_conv_algorithm set_conv_algorithm",
    "nn": "HookHandle LayerSummary Summary init observe",
    "optim": "Optimizer lr_scheduler",
    "data": """
        AlternatingFlip CIFAR10 CIFAR100 MNIST ColorNoise Compose DataNotFound Dataset FashionMNIST
        ImageFolder
        ItemDataset Normalize PerImageTransform RandomCrop RandomHorizontalFlip Synthetic
        TensorDataset Transform
        channel_statistics
        color_components default_root find_cifar10
    """,
    "train": """
        Callback Checkpoint Checkpoints ClassScores Curves EarlyStopping EpochLine Evaluation
        GradientNorm JSONLines LearningRates Logger MetricsFile ModelCheckpoint ProgressBar
        SettingsFile TensorBoard TimeLimit WandbLogger confusion_table
    """,
    "inspect": """
        Advice Analysis Memory Predictions Strongest confusion_chart draw filter_pictures
        mistakes_page page training_curves update_ratio_histograms
    """,
    "models": """
        BY_NAME alexnet alexnet_cifar10 alexnet_cifar10_bn alexnet_keras alexnet_torchvision
        SpeedrunNet cuda_convnet_18pct input_shape lenet lenet5 mlp resnet18_cifar speedrun_cifar10
        vgg16_cifar
    """,
}
