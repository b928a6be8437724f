"""The longer calls in the table of public_functions.py."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import host

import gpucnn
from gpucnn import cuda, data, inspect, models, nn, ops, optim, train
from gpucnn.device import Device, working_on
from gpucnn.models.classifier import Classifier


class Target:
    """A device under test.  Its tensors and models have the same values on every device."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.device = Device.parse(name)
        self.rng = np.random.default_rng(4)
        gpucnn.manual_seed(0)

    def tensor(self, *shape: int, grad: bool = True, positive: bool = False) -> gpucnn.Tensor:
        array = self.rng.standard_normal(shape, np.float32)
        array = np.abs(array) + 1 if positive else array
        return gpucnn.tensor(array, device=self.name, requires_grad=grad)

    def labels(self, n: int, classes: int) -> gpucnn.Tensor:
        return gpucnn.tensor(self.rng.integers(0, classes, n), device=self.name)

    def model(self) -> nn.Sequential:
        """A model with each kind of layer that `inspect` looks for."""
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(4 * 4 * 4, 5),
        ).to(self.name)

    def images(self, n: int = 3, grad: bool = False) -> gpucnn.Tensor:
        return self.tensor(n, 8, 8, 3, grad=grad)

    def loader(self, **options: Any) -> data.DataLoader:
        rng = np.random.default_rng(5)
        images = rng.integers(0, 256, (12, 8, 8, 3), np.uint8)
        dataset = data.Dataset(images, np.arange(12) % 5, tuple("abcde"))
        options = {"transform": data.Normalize((0.5,) * 3, (0.2,) * 3), **options}
        return data.DataLoader(dataset, 4, shuffle=True, device=self.name, **options)

    def trainer(self, **options: Any) -> train.Trainer:
        model = self.model()
        optimizer = optim.SGD(model.parameters(), 0.01, momentum=0.9)
        return train.Trainer(model, optimizer, self.loader(), self.loader(), **options)


Call = Callable[[Target], Any]


def op(f: Callable[..., gpucnn.Tensor], *shapes: tuple[int, ...], positive: bool = False) -> Call:
    """Call f on tensors of these shapes; return its result and their gradients."""

    def call(at: Target) -> Any:
        inputs = [at.tensor(*shape, positive=positive) for shape in shapes]
        y = f(*inputs)
        y.backward(at.tensor(*y.shape, grad=False).astype(y.dtype).data)
        return [y, *(x.grad for x in inputs)]

    return call


def layer(build: Callable[[], nn.Module], *shape: int) -> Call:
    def call(at: Target) -> Any:
        module = build().to(at.name)
        x = at.tensor(*(shape or (2, 8, 8, 3)))
        y = module(x)
        y.backward(at.tensor(*y.shape, grad=False).data)
        return y, x.grad, [p.grad for p in module.parameters()], module.state_dict()

    return call


def compared(f: Callable[..., gpucnn.Tensor]) -> Call:
    """A comparison of tensors, with a number and with an array."""

    def call(at: Target) -> Any:
        a, b = at.tensor(3, 4), at.tensor(4)
        return f(a, b), f(a, 0.5), f(0.5, a), f(a, a.data)

    return call


def stepped(rule: Callable[..., optim.Optimizer]) -> Call:
    def call(at: Target) -> Any:
        model, images, labels = at.model(), at.images(), at.labels(3, 5)
        optimizer = rule(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            ops.cross_entropy(model(images), labels).backward()
            norm = optim.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        state = {n: host(a).copy() for n, a in optimizer.state_dict().items() if hasattr(a, "size")}
        again = rule(model.parameters())
        again.load_state_dict(optimizer.state_dict())
        return norm, model.state_dict(), state, again.state_dict()

    return call


def grad_scaler(at: Target) -> Any:
    model, images, labels = at.model(), at.images(), at.labels(3, 5)
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scaler = optim.GradScaler(at.name, init_scale=8, growth_interval=1)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(ops.cross_entropy(model(images), labels)).backward()
        if step == 1:
            gradient = model.parameters()[0].grad
            assert gradient is not None
            with working_on(Device.parse(at.name)):
                gradient[...] = np.inf
        scaler.step(optimizer)
    again = optim.GradScaler(at.name)
    again.load_state_dict(scaler.state_dict())
    return model.state_dict(), again.get_scale(), list(scaler.state_dict().values())


def batch_norm(at: Target) -> Any:
    x, gamma, beta = at.tensor(2, 4, 4, 3), at.tensor(3), at.tensor(3)
    mean, var = at.tensor(3, grad=False).data, at.tensor(3, grad=False, positive=True).data
    results = []
    for training in (True, False):
        y = ops.batch_norm(x, gamma, beta, mean, var, training)
        y.backward(at.tensor(*y.shape, grad=False).data)
        results.append(host(y))
    return results, x.grad, gamma.grad, beta.grad, mean, var


def cross_entropy(at: Target) -> Any:
    logits, weights = at.tensor(6, 4), at.tensor(4, grad=False, positive=True)
    losses = []
    for labels in (at.labels(6, 4), [0, 1, 2, 3, 0, 1]):
        for given in (None, weights, weights.data, [1.0, 2.0, 3.0, 4.0]):
            loss = ops.cross_entropy(logits, labels, given, 0.1)
            loss.backward()
            losses.append(loss)
    return losses, logits.grad


def to_cpu_and_back(at: Target) -> Any:
    x = at.tensor(3, 4)
    y = ops.to_device(ops.to_device(x * 2.0, Device.parse("cpu")) * 3.0, at.device)
    y.backward(at.tensor(3, 4, grad=False).data)
    return y, x.grad


def module_methods(at: Target) -> Any:
    model, images = at.model(), at.images()
    y = model(images)
    before = {name: host(array).copy() for name, array in model.state_dict().items()}
    other = at.model()
    other.load_state_dict(model.state_dict())
    other.load_state_dict(before)
    twice = other.eval().astype(np.float64)(images.astype(np.float64))
    moved = other.astype(np.float32).to("cpu").to(at.name)(images)
    return y, before, twice, moved


def running_metrics(at: Target) -> Any:
    metrics = train.RunningMetrics()
    for _ in range(2):
        logits, labels = at.tensor(4, 5), at.labels(4, 5)
        metrics.add(ops.cross_entropy(logits, labels), logits, labels)
    return metrics.loss, metrics.accuracy, metrics.state_dict()


def trained(at: Target) -> Any:
    trainer = at.trainer()
    trainer.fit(2)
    path = at.folder / f"{at.device.kind}.safetensors"
    trainer.save(path)
    again = at.trainer()
    again.resume(path)
    again.fit(1)
    kept = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    history = [[row[name] for name in kept] for row in again.history]
    return history, again.model.state_dict(), trainer.model.state_dict()


def learning_rates(at: Target) -> Any:
    trainer = at.trainer()
    found = train.find_lr(trainer, min_lr=1e-4, max_lr=1e-2, steps=10)
    return found.losses, found.smoothed, trainer.model.state_dict()


def checkpoint(at: Target) -> Any:
    path = at.folder / f"{at.device.kind}.checkpoint"
    train.write_checkpoint(path, {"x": at.tensor(3, 4).T.data}, {})
    return train.read_checkpoint(path).tensors["x"]


def update_ratios(at: Target) -> Any:
    ratios = inspect.UpdateRatios()
    at.trainer(callbacks=[ratios]).fit(1)
    return {name: [r for r in one if np.isfinite(r)] for name, one in ratios.ratios.items()}


def analyze(at: Target) -> Any:
    model = at.model()
    return str(inspect.analyze(model, (8, 8, 3)).summary), model.state_dict()


def training_memory(at: Target) -> Any:
    model = at.model()
    predicted = inspect.training_memory(model, (8, 8, 3), 4)
    return predicted.parameters, predicted.images, model.state_dict()


class Foreign:
    """An array of another library that offers only DLPack."""

    def __init__(self, tensor: gpucnn.Tensor) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)


def tensor_methods(at: Target) -> Any:
    a, b = at.tensor(3, 4), at.tensor(3, 4, positive=True)
    y = ((-a + 1.0 - b) * 2.0 / b**2 + 3.0 / b).retain_grad()
    z = (y @ b.T)[1:, :2].reshape(-1).exp().astype(np.float64).mean()
    z.backward()
    a.detach().zero_grad()
    host_values = (
        a.T.numpy(),
        np.asarray(a),
        a[1, 2].item(),
        bool(b[0, 0]),
        len(repr(a.detach().to("cpu"))),
    )
    methods = [a.argmax(), a.argmax(axis=1), a.sum(), a.max(), a.min(), a.flatten(), a.T.relu()]
    methods += [a.transpose(1, 0), b.log(), b.sqrt(), a.to("cpu").to(at.name)]
    methods += [abs(a), a.clamp(-1, 1), a.clone(), a.permute(1, 0), a.unsqueeze(0).squeeze()]
    methods += [a > b, (a == a).float(), a.view(-1), a.half(), a.sigmoid(), a.tanh(), a.softmax()]
    host_values += (float(a[0, 0]), f"{a[0, 0]:.3f}", a.cpu().tolist(), np.mean(a), np.stack([a]))
    exposed = Exposed(a) if hasattr(a, "__cuda_array_interface__") else a
    return y, z, a.grad, b.grad, y.grad, host_values, methods, gpucnn.tensor(exposed)


class Scale(gpucnn.Function):
    name = "scale"

    def forward(self, x: Any) -> Any:
        return x * 2

    def backward(self, dy: Any) -> Any:
        return dy * 2


def scaled(at: Target) -> Any:
    x = at.tensor(3, 4)
    y = Scale()(x)
    y.sum().backward()
    return y, x.grad


class Exposed:
    """An array of another library that offers only __cuda_array_interface__."""

    def __init__(self, tensor: gpucnn.Tensor) -> None:
        self.tensor = tensor

    @property
    def __cuda_array_interface__(self) -> Any:
        return self.tensor.__cuda_array_interface__


def exported(at: Target) -> Any:
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    path = at.folder / "model.onnx"
    gpucnn.export_onnx(at.model(), path, (8, 8, 3))
    return [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]


def saved(at: Target) -> Any:
    model = models.build("lenet5").to(at.name)
    path = at.folder / f"{at.device.kind}.saved"
    gpucnn.save(path, model, "lenet5")
    return gpucnn.load(path, device=at.name)(at.tensor(2, 28, 28, 1))


def classified(at: Target) -> Any:
    saved(at)
    classifier = Classifier(at.folder / f"{at.device.kind}.saved", device=at.name)
    return classifier.probabilities(np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28, 1))


def timed(at: Target) -> Any:
    timer = cuda.Timer(at.device)
    with timer:
        at.tensor(3).sum()
    assert timer.seconds >= 0
    return timer.count


def kernels(at: Target, work: Callable[[], object]) -> None:
    """Run `work` on devices with kernels; its results are not compared."""
    if at.name != "cpu":
        work()


def numbers(result: Any) -> Iterator[np.ndarray]:
    """Every array, tensor and number in `result`, on the host."""
    if isinstance(result, dict):
        result = list(result.values())
    if dataclasses.is_dataclass(result):
        result = [getattr(result, field.name) for field in dataclasses.fields(result)]
    if isinstance(result, list | tuple):
        for part in result:
            yield from numbers(part)
    elif result is not None:
        yield host(result)
