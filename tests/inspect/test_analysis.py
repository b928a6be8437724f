import threading
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest

import gpucnn
from gpucnn import autograd, cuda, inspect, models, nn, ops, optim
from gpucnn.cpu import scratch_bytes
from gpucnn.cudasim.memory import unpoisoned
from gpucnn.device import CPU, Device
from gpucnn.errors import ArgumentError
from gpucnn.inspect.memory import Growth
from gpucnn.precision import autocast_of


def warnings_of(model, shape):
    return [str(advice) for advice in inspect.analyze(model, shape, batch_size=1).warnings]


def test_the_analysis_of_alexnet_has_its_summary_and_no_warnings():
    model = models.alexnet_cifar10()
    analysis = inspect.analyze(model, (32, 32, 3))
    assert analysis.summary == nn.summary(model, (32, 32, 3))
    assert analysis.warnings == ()
    text = str(analysis)
    assert "no warnings" in text
    assert "7,506,762" in text
    assert f"{analysis.memory.peak / 2**20:.1f} MiB" in text


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (nn.Conv2d(1, 1, 3, stride=2), (8, 9, 1), "the last 1 row of its 8 x 9"),
        (nn.Conv2d(1, 1, 3, stride=3), (7, 11, 1), "the last 1 row and the last 2 columns"),
        (nn.Conv2d(1, 1, (1, 3), stride=(1, 3), padding=(0, 1)), (4, 6, 1), "the last 1 column"),
        (
            nn.Conv2d(1, 1, 2, stride=3, dilation=1),
            (5, 5, 1),
            "sees 1 of its 5 rows: window 2",
        ),
        (nn.MaxPool2d(2), (5, 5, 1), "the last 1 row and the last 1 column"),
        (nn.AvgPool2d(3, 2), (6, 7, 1), "the last 1 row of its 6 x 7"),
        (nn.Conv2d(1, 1, 2, stride=2, dilation=2), (6, 6, 1), "sees 3 of its 6 columns"),
    ],
)
def test_a_warning_names_rows_and_columns_that_no_window_covers(layer, shape, words):
    found = warnings_of(nn.Sequential(layer), shape)
    assert any(words in text for text in found), found
    assert all(text.startswith("0: ") for text in found)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(1, 1, 3, stride=2, padding=1), (8, 8, 1)),  # the unseen row is padding
        (nn.Conv2d(1, 1, 3, stride=2, padding="same"), (8, 8, 1)),
        (nn.Conv2d(1, 1, 3, dilation=2), (8, 8, 1)),
        (nn.MaxPool2d(2, ceil_mode=True), (5, 5, 1)),
        (nn.MaxPool2d(3, 2), (7, 7, 1)),
        (nn.Conv2d(1, 1, 11, stride=4), (227, 227, 1)),
    ],
)
def test_geometries_that_cover_the_input_give_no_warning(layer, shape):
    assert warnings_of(nn.Sequential(layer), shape) == []


def test_unseen_rows_are_those_without_a_gradient(rng):
    """The warning agrees with autograd, for random geometries."""
    for _ in range(60):
        k, stride, dilation = (int(v) for v in rng.integers(1, 4, size=3))
        padding = int(rng.integers(0, 3))
        conv = nn.Conv2d(1, 1, k, stride, padding, dilation, weight_init=nn.init.ones)
        size = int(rng.integers((k - 1) * dilation + 1, 12))
        x = gpucnn.tensor(np.ones((1, size, size, 1), np.float32), requires_grad=True)
        conv(x).sum().backward()
        unseen = np.flatnonzero(~x.grad[0, :, :, 0].any(axis=1))
        found = " ".join(warnings_of(nn.Sequential(conv), (size, size, 1)))
        if len(unseen) == 0:
            assert not found
        elif unseen[0] == size - len(unseen):
            assert f"no window sees the last {len(unseen)} row" in found
        else:
            assert f"no window sees {len(unseen)} of its {size} rows" in found


def test_a_relu_after_a_relu_has_no_effect_even_across_layers_that_keep_the_sign():
    model = nn.Sequential(
        nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.ReLU(), nn.Flatten(), nn.LeakyReLU(),
        nn.Linear(4, 2), nn.Sigmoid(), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2),
    )  # fmt: skip
    found = warnings_of(model, (4, 4, 1))
    assert [text.split(":")[0] for text in found] == ["3", "5", "8"]
    assert "input comes from ReLU 0 and is never negative" in found[0]
    assert "LeakyReLU has no effect" in found[1]
    assert "from Sigmoid 7" in found[2]


def test_a_relu_after_a_possibly_negative_output_gives_no_warning():
    model = nn.Sequential(
        nn.ReLU(), nn.BatchNorm2d(1), nn.ReLU(), nn.Tanh(), nn.LeakyReLU(), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip
    assert warnings_of(model, (4, 4, 1)) == []


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ([nn.Dropout(0.5)], ["dropout after the last layer"]),
        ([nn.Softmax()], ["ends in Softmax"]),
        ([nn.LogSoftmax()], ["ends in LogSoftmax"]),
        ([nn.ReLU()], ["makes negative logits impossible"]),
        ([nn.Dropout(0.5), nn.Softmax()], ["dropout after the last layer", "ends in Softmax"]),
    ],
)
def test_layers_after_the_last_parameters_give_warnings(tail, words):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2), *tail)
    found = warnings_of(model, (2, 2, 1))
    assert len(found) == len(words)
    for i, (text, word) in enumerate(zip(found, words, strict=True)):
        assert text.startswith(f"{3 + i}: ")
        assert word in text


def test_ops_between_layers_suppress_warnings():
    class Residual(nn.Module):
        def __init__(self):
            self.one, self.two = nn.ReLU(), nn.ReLU()

        def forward(self, x):
            return self.two(self.one(x) - 1)

    assert warnings_of(nn.Sequential(Residual(), nn.Flatten(), nn.Linear(4, 1)), (2, 2, 1)) == []


def test_a_single_layer_is_a_model_too():
    assert warnings_of(nn.ReLU(), (2, 2, 1)) == [
        "ReLU: a ReLU after the last layer makes negative logits impossible; remove it"
    ]
    assert inspect.analyze(nn.ReLU(), (2, 2, 1)).memory is None


# --- memory ---


def test_the_kept_bytes_of_a_dense_network_are_counted_by_hand():
    model = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    memory = inspect.training_memory(model, (100,), batch_size=7, optimizer_states=2)
    parameters = 4 * (100 * 50 + 50 + 50 * 10 + 10)
    assert memory.parameters == parameters
    assert memory.optimizer == 2 * parameters
    assert memory.images == 7 * 100 * 4
    # The peak is the first layer's backward pass.  Alive are all gradients, including that of its
    # output; its output (50); and the logits (10), which the caller holds.  Each array has 64 extra
    # bytes, so that it can start on a cache line.
    assert memory.at == "linear"
    assert memory.gradients == parameters + 7 * 50 * 4
    assert memory.activations == 7 * (50 + 10) * 4 + 2 * 64
    assert memory.work < 50_000  # scratch memory for the ReLU's mask, and Python's own objects
    assert memory.peak == memory.images + memory.activations + memory.gradients + memory.work + (
        memory.parameters + memory.optimizer
    )


class Slots:
    __slots__ = ("saved",)

    def __init__(self, saved):
        self.saved = saved


class Attributes(Slots):
    __slots__ = ("__dict__", "own")

    def __init__(self, saved):
        super().__init__(np)  # modules are not searched
        self.array, self.own = saved, self


@dataclass(frozen=True, slots=True)
class Frozen:
    saved: object


@pytest.mark.parametrize("wrap", [lambda x: [x], Slots, Attributes, Frozen, lambda x: {"x": x}])
def test_saved_arrays_are_counted_in_any_container(wrap):
    class Double(autograd.Function):
        def __init__(self, wrap):
            self.wrap = wrap

        def forward(self, x):
            self.saved = (self.wrap(np.zeros((len(x), 1000), np.float32)),)
            return x * 2

        def backward(self, dy):
            return dy * 2

    class Net(nn.Module):
        def __init__(self, wrap):
            self.linear, self.wrap = nn.Linear(4, 3), wrap

        def forward(self, x):
            return Double(self.wrap)(self.linear(x))

    bare, held = (inspect.training_memory(Net(how), (4,), 6) for how in (lambda x: None, wrap))
    assert held.activations - bare.activations == 6 * 1000 * 4


def test_in_half_precision_a_gpu_keeps_activations_of_half_the_size_and_copies_of_weights(rng):
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, generator=rng), nn.Tanh(), nn.Conv2d(16, 16, 3, generator=rng),
        nn.Tanh(), nn.Flatten(), nn.Linear(16 * 4 * 4, 8, generator=rng), nn.Tanh(),
    ).to(Device("cudasim"))  # fmt: skip
    with cuda.record_launches(False), unpoisoned(), np.errstate(all="ignore"):
        full, half = (
            inspect.training_memory(model, (8, 8, 8), 64, precision=precision)
            for precision in ("fp32", "fp16")
        )
    # The first layer keeps its images, rounded.
    assert half.activations * 2 == full.activations + full.images
    weights = sum(p.size for p in model.parameters() if p.ndim > 1)
    assert half.parameters - full.parameters == 2 * weights
    assert half.images == full.images  # float32
    own = sum(p.data.nbytes for p in model.parameters())
    assert full.gradients / 2 < half.gradients < full.gradients <= half.gradients * 2 + own


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_prediction_is_within_2_percent_of_the_traced_peak_of_a_step(rng, precision):
    if precision == "bf16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, generator=rng), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 8, 1, generator=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 15 * 15, 10),
    )  # fmt: skip
    images, labels = rng.standard_normal((48, 32, 32, 3), np.float32), np.arange(48) % 10

    def step(model, optimizer):
        with autocast_of(precision, CPU):
            loss = ops.cross_entropy(model(gpucnn.tensor(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    optimizer = optim.SGD(model.parameters(), 0.01, momentum=0.9)
    threads = gpucnn.get_num_threads()
    peaks = []

    def steps():  # in a thread without scratch memory: the first step allocates it
        for _ in range(2):
            tracemalloc.reset_peak()
            step(model, optimizer)
            peaks.append(tracemalloc.get_traced_memory()[1])
        peaks.append(scratch_bytes())

    gpucnn.set_num_threads(1)
    try:
        tracemalloc.start()
        thread = threading.Thread(target=steps)
        thread.start()
        thread.join()
        tracemalloc.stop()
        memory = inspect.training_memory(model, (32, 32, 3), 48, precision=precision)
        gpucnn.set_num_threads(3)
        of_three_threads = inspect.training_memory(model, (32, 32, 3), 48, precision=precision)
    finally:
        tracemalloc.stop()
        gpucnn.set_num_threads(threads)
    predicted = memory.activations + memory.gradients + memory.images + memory.work
    assert 0.98 < predicted / peaks[1] < 1.02  # the rest was allocated before
    assert of_three_threads.work - memory.work == pytest.approx(2 * peaks[2], rel=0.02)


def test_predicting_memory_does_not_change_modes_statistics_or_generators(rng):
    model = models.alexnet_cifar10_bn(generator=rng).eval()
    model[18].generator = np.random.default_rng(5)
    state = gpucnn.default_generator().bit_generator.state["state"]["counter"].copy()
    own = model[18].generator.bit_generator.state
    before = {name: array.copy() for name, array in model.state_dict().items()}
    inspect.training_memory(model, (32, 32, 3), 4)
    after = gpucnn.default_generator().bit_generator.state["state"]["counter"]
    assert (after == state).all()
    assert model[18].generator.bit_generator.state == own
    assert not any(module.training for module in model)
    assert all(np.array_equal(before[name], a) for name, a in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_predicting_memory_keeps_gradients_and_a_running_trace():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    mine = model[1].weight.grad = np.ones((2, 4), np.float32)
    tracemalloc.start()
    try:
        inspect.training_memory(model, (2, 2, 1), 4)
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()
    assert model[1].weight.grad is mine


def test_memory_is_linear_in_the_batch_size_while_the_peak_is_at_the_same_op(monkeypatch):
    monkeypatch.setattr("gpucnn.inspect.memory.TRACED", 1 << 22)
    model = models.alexnet_cifar10()
    memory = [inspect.training_memory(model, (32, 32, 3), n) for n in (100, 200, 400)]
    assert len({m.at for m in memory}) == 1
    one, two, four = (m.peak - m.work for m in memory)
    assert four - two == 2 * (two - one)
    assert memory[2].work == pytest.approx(
        memory[0].work, rel=0.01
    )  # blocks have reached their full size


def test_the_traced_step_is_as_large_with_many_weights_in_half_precision(monkeypatch):
    monkeypatch.setattr("gpucnn.inspect.memory.TRACED", 1 << 20)
    sizes = []
    monkeypatch.setattr(Growth, "measure", lambda growth, n: sizes.append(n) or (0, 0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2048))  # 1.5 MiB, saved rounded
    for precision in ("fp32", "fp16"):
        inspect.training_memory(model, (8, 8, 3), 64, precision=precision)
    assert sizes == [64, 64]


def test_invalid_batch_sizes_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ArgumentError, match="batch_size >= 1"):
        inspect.training_memory(model, (2, 2, 1), 0)
    with pytest.raises(ArgumentError, match="optimizer_states >= 0"):
        inspect.training_memory(model, (2, 2, 1), 1, -1)
