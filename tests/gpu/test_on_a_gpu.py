"""Training on a GPU: compared with the CPU, reproducible to the bit, without synchronizing."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from waiting import Waited, host_never_waits, memory_asked_for

import gpucnn
from gpucnn import cuda, data, models, nn, ops, optim
from gpucnn.commands import launches, warmup
from gpucnn.cuda import card
from gpucnn.device import Device, working_on
from gpucnn.errors import ArgumentError, DeviceMismatch, DtypeError, ShapeError
from gpucnn.train.divergence import StepWatch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _exact(conv_algorithm):
    """Winograd's rounding errors on the CPU would hide those of the kernels."""
    conv_algorithm("exact")


def every_layer() -> nn.Sequential:
    """A small model with each layer that has a kernel, and each load mode of the convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),  # load mode few
        nn.ReLU(),
        nn.LocalResponseNorm(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, 2, "same", groups=2, bias=False),  # load mode vector
        nn.BatchNorm2d(24),
        nn.LeakyReLU(0.1),
        nn.Conv2d(24, 9, (3, 1), bias=False),  # load mode scalar
        nn.AvgPool2d(2, padding=1),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(9 * 1 * 2, 20),
        nn.GELU(),
        nn.Linear(20, 5),
    )


class Run:
    """A model in training on a device; it starts from the same state on every device."""

    def __init__(self, device, build=every_layer, rule=None, batch=4, classes=5):
        gpucnn.manual_seed(11)
        self.model = build().to(device)
        rule = rule or (lambda p: optim.SGD(p, 0.01, 0.9, weight_decay=1e-3))
        self.optimizer = rule(self.model.parameters())
        side = 32 if build is not every_layer else 12
        rng = np.random.default_rng(12)
        images = rng.standard_normal((batch, side, side, 3), np.float32)
        self.images = gpucnn.tensor(images, device=device)
        self.labels = gpucnn.tensor(rng.integers(0, classes, batch), device=device)

    def step(self):
        self.optimizer.zero_grad()
        loss = ops.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def tensors(self):
        """Gradients, parameters and buffers by name, on the host."""
        found = {f"{n} gradient": p.grad for n, p in self.model.named_parameters()}
        found |= self.model.state_dict()
        return {name: gpucnn.Tensor(array).numpy() for name, array in found.items()}


def distance(ours, theirs):
    """The largest difference of two arrays, relative to the largest value."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert np.isfinite(ours).all()
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


# --- compared with the CPU ---


@pytest.mark.parametrize(
    "rule",
    [
        lambda p: optim.SGD(p, 0.01, 0.9, nesterov=True, weight_decay=1e-3),
        lambda p: optim.AdamW(p, 0.001),
    ],
    ids=["SGD", "AdamW"],
)
def test_a_step_through_every_layer_gives_the_cpus_loss_gradients_and_parameters(gpu, rule):
    # Errors of sums of up to 576 terms, about sqrt(576) * 2**-24 = 1.4e-6, through 8 layers.
    compare(after_a_step(gpu, rule=rule), after_a_step("cpu", rule=rule), bound=3e-5)


def test_a_step_of_alexnet_gives_the_cpus_loss_gradients_and_parameters(gpu):
    # Errors of sums of up to 3456 terms, about sqrt(3456) * 2**-24 = 3.5e-6, through 8 layers.
    arguments = {"build": models.alexnet_cifar10, "batch": 2, "classes": 10}
    compare(after_a_step(gpu, **arguments), after_a_step("cpu", **arguments), bound=3e-5)


def after_a_step(device, **arguments):
    """The loss of a step, and every tensor after it."""
    run = Run(device, **arguments)
    return run.step().item(), run.tensors()


def compare(ours, theirs, bound):
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    errors = {name: distance(array, theirs[1][name]) for name, array in ours[1].items()}
    assert {name: error for name, error in errors.items() if error > bound} == {}


def test_a_model_saved_on_a_gpu_predicts_the_same_on_the_cpu(gpu, tmp_path):
    build = models.lenet5
    images = np.random.default_rng(1).random((3, 28, 28, 1), np.float32)
    model = build(generator=np.random.default_rng(2)).to(gpu)
    gpucnn.save(tmp_path / "a.safetensors", model, "lenet5")
    loaded = gpucnn.load(tmp_path / "a.safetensors")
    with gpucnn.no_grad():
        ours = model.eval()(gpucnn.tensor(images, device=gpu)).numpy()
        theirs = loaded.eval()(gpucnn.tensor(images)).numpy()
    assert distance(ours, theirs) <= 1e-5


def test_every_batch_of_a_loader_holds_the_cpus_images(gpu):
    dataset = data.Synthetic(n=20)
    transform = data.Compose(
        [
            data.RandomCrop(32, 4),
            data.RandomHorizontalFlip(),
            data.Normalize((0.5,) * 3, (0.2,) * 3),
        ]
    )
    batches = [
        list(data.DataLoader(dataset, 8, shuffle=True, transform=transform, device=device))
        for device in (gpu, "cpu")
    ]
    for (ours, labels), (theirs, expected) in zip(*batches, strict=True):
        assert distance(ours.numpy(), theirs.numpy()) <= 1e-6
        np.testing.assert_array_equal(labels.numpy(), expected.numpy())


# --- reproducible, and without synchronizing ---


def test_the_same_seed_gives_the_same_bits(gpu):
    results = []
    for _ in range(2):
        run = Run(gpu)
        for _ in range(3):
            run.step()
        results.append(run.tensors())
    for name, array in results[0].items():
        assert array.tobytes() == results[1][name].tobytes(), name


@pytest.mark.parametrize("rule", [None, optim.AdamW], ids=["SGD", "AdamW"])
def test_a_step_neither_synchronizes_nor_allocates_from_the_device(gpu, rule):
    run, device = Run(gpu, rule=rule), Device.parse(gpu)
    for _ in range(3):  # kernels are compiled and memory is cached after these
        run.step()
    before = memory_asked_for(device)
    with host_never_waits(device):
        for _ in range(3):
            run.step()
    assert memory_asked_for(device) == before


def test_a_step_is_watched_without_waiting_for_it(gpu):
    run, watch, device = Run(gpu), StepWatch(), Device.parse(gpu)
    with working_on(device):
        loss = run.step().data
        watch.send(0.1, 0, loss, watch.update(run.optimizer))
        with host_never_waits(device):
            watch.send(0.1, 1, loss, watch.update(run.optimizer))
        assert watch.first(wait=True) is None


def test_inference_does_not_synchronize(gpu):
    run, device = Run(gpu), Device.parse(gpu)
    run.model.eval()
    with gpucnn.no_grad():
        run.model(run.images)
        with host_never_waits(device):
            run.model(run.images)


def test_host_never_waits_detects_that_a_loss_is_read(gpu):
    run, device = Run(gpu), Device.parse(gpu)
    run.step()
    with pytest.raises(Waited), host_never_waits(device):
        run.step().item()


def test_a_step_on_another_stream_gives_the_same_bits(gpu):
    device = Device.parse(gpu)
    expected = Run(gpu)
    expected.step()
    run = Run(gpu)
    with device.xp.cuda.Device(device.index) as current:
        current.synchronize()
        stream = device.xp.cuda.Stream(non_blocking=True)
        with stream:
            run.step()
        stream.synchronize()
    wanted = expected.tensors()
    for name, array in run.tensors().items():
        assert array.tobytes() == wanted[name].tobytes(), name


def test_a_step_launches_what_its_shapes_predict(gpu, monkeypatch):
    device = Device.parse(gpu)
    monkeypatch.setattr(card, "_reference", card.card_of(device))
    expected = launches.of_model("alexnet_cifar10", 1)
    found = launches.of_model("alexnet_cifar10", 1, device=device, run=True)
    assert {
        phase: [(launch.kernel.name, launch.grid, launch.block) for launch in made]
        for phase, made in found.items()
    } == {
        phase: [(launch.kernel.name, launch.grid, launch.block) for launch in made]
        for phase, made in expected.items()
    }


# --- mistakes ---


def test_a_launch_refuses_wrong_arguments(gpu):
    xp = Device.parse(gpu).xp
    x, y = xp.zeros(64, np.float32), xp.zeros(64, np.float32)

    def relu(x, y, size=64, grid=1, block=64, shared=0):
        cuda.launch("relu_forward", grid, block, x, y, size, shared=shared)

    relu(x, y)
    for error, match, arguments in [
        (DeviceMismatch, "is on cpu", (x, np.zeros(64, np.float32))),
        (DtypeError, "an array of float32, got float64", (x.astype(np.float64), y)),
        (ShapeError, "is not contiguous", (xp.zeros((64, 2), np.float32)[:, 0], y)),
        (DtypeError, "got 1.5", (x, y, 1.5)),
        (ArgumentError, "block", (x, y, 64, 1, 2048)),
        (ArgumentError, "has 512 threads, the kernel's limit is 256", (x, y, 64, 1, 512)),
        (ArgumentError, "grid", (x, y, 64, -1)),
        (ArgumentError, "dynamic shared memory", (x, y, 64, 1, 64, 1 << 20)),
    ]:
        with pytest.raises(error, match=match):
            relu(*arguments)


def test_tensors_on_two_devices_are_refused(gpu):
    with pytest.raises(DeviceMismatch, match=r"add: one input is on .*, another on cpu"):
        gpucnn.tensor([1.0], device=gpu) + gpucnn.tensor([1.0])


# --- programs ---


def run_script(*arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)


def test_the_script_trains_and_writes_a_checkpoint(gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path / "none"))
    flags = "--dataset synthetic --limit 16 --batch-size 8 --epochs 1 --seed 1 --quiet".split()
    script = ROOT / "examples" / "train_alexnet_cifar10.py"
    done = run_script(script, *flags, "--device", gpu, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "last.safetensors").is_file()
    with open(tmp_path / "out" / "metrics.csv") as file:
        (row,) = csv.DictReader(file)
    assert np.isfinite([float(row["train_loss"]), float(row["test_loss"])]).all()


def test_the_benchmark_of_a_step_prints_every_figure(gpu):
    done = run_script(ROOT / "benchmarks" / "gpu_training_step.py", "--device", gpu, "--tiny")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    names = [row.split("|")[1].strip() for row in rows]
    assert names[1:4] == ["training, ms", "inference, ms", "memory, MiB"]
    assert [name.split()[0] for name in names[5:]] == ["Conv2d"] * 5 + ["Linear"] * 3


def test_warming_up_leaves_nothing_to_compile(gpu):
    warmup.warm_up("lenet5", gpu, 2)
    assert warmup.warm_up("lenet5", gpu, 2)[0] == []
