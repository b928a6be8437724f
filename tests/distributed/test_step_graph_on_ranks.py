"""Several ranks replay their steps as graphs, with the sums over the ranks between them."""

import numpy as np
import pytest
from devices import SECOND_CUDA, tensor
from fake_ranks import run
from nccl_ranks import cupy_with_fake_nccl
from nccl_ranks import ranks as nccl_ranks
from replays import ON_DEVICE, differences, on_the_host, state

from gpucnn import cuda, data, nn, ops, optim, train
from gpucnn.device import Device, to_host, working_on
from gpucnn.distributed import DistributedOptimizer, convert_sync_batchnorm
from gpucnn.optim.lr_scheduler import LambdaLR
from gpucnn.train.random_state import generator_state
from gpucnn.train.ranks import ManyRanks

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}


@pytest.fixture(autouse=True)
def compiled(request):
    """Load the compiler before the threads of the ranks do."""
    device = Device.parse(request.getfixturevalue("gpu"))
    with working_on(device):
        assert bool(device.xp.isfinite(device.xp.zeros(1)).all())


def network(seed, *more):
    rng = np.random.default_rng(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.3, np.random.Generator(np.random.Philox(3))),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        *more,
        nn.AvgPool2d(4),
        nn.Flatten(),
    )
    for parameter in model.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape) / 4
    return model


def build(comm, device, graph, images, batch, more=(), transform=ON_DEVICE, **options):
    make = options.pop("make", optim.SGD)
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8)
    dataset = data.Dataset(pixels, rng.integers(0, 8, images), tuple("abcdefgh"))
    model = network(comm.rank, *more).to(device)
    if options.pop("sync", False):
        convert_sync_batchnorm(model, comm)
    loader = data.DataLoader(
        dataset, batch, shuffle=True, transform=transform, device=device, prefetch=0
    )
    settings = SGD if make is optim.SGD else {"lr": 0.01}
    optimizer = make(model.parameters(), **settings)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + 0.3 * step))
    return train.Trainer(
        model, optimizer, loader, None, scheduler, comm=comm, graph=graph, **options
    )


def arrays_of(trainer):
    """What the steps change on one rank; the threads share the default generator."""
    drawn = str(generator_state(trainer.model.layers[4].generator))
    grads = {f"grad {i}": to_host(p.grad).copy() for i, p in enumerate(trainer.model.parameters())}
    return state(trainer) | {"generators": drawn} | grads


def fitted(comm, device, graph, images=18, batch=4, epochs=2, prepare=None, **options):
    """What the run ends with, its collective calls, and the Trainer."""
    trainer = build(comm, device, graph, images, batch, **options)
    if prepare is not None:
        prepare(trainer)
    trainer.fit(epochs)
    return arrays_of(trainer), list(comm.calls), trainer


def replays(trainer):
    captured = trainer._guard.graph._captured
    return captured.replays if captured is not None else 0


def assert_same_as_eager(found, eager):
    for (arrays, calls, _), (expected, expected_calls, _) in zip(found, eager, strict=True):
        assert differences(arrays, expected) == []
        assert calls == expected_calls


def start_scale(trainer):
    """A loss scale that overflows in a few steps."""
    trainer.scaler.load_state_dict({"scale": 2.0**22, "good_steps": 0, "skipped": 0})


class Gradients(train.Callback):
    """Runs the model backward on rank 0 alone, which adds to the gradients."""

    def on_batch_end(self, trainer):
        trainer.model.eval()
        x = tensor(np.ones((1, 8, 8, 3), np.float32), trainer.model.parameters()[0].device)
        ops.sum(trainer.model(x)).backward()
        trainer.model.train()


@pytest.mark.parametrize(
    ("options", "replayed"),
    [
        ({}, [6, 6]),  # the last batch of two epochs has one image a rank
        # Parts of two and three images; in the last batch of two and two: only the total differs
        ({"images": 24, "batch": 5}, [6, 6]),
        ({"images": 21, "batch": 4}, [8, 8]),  # the last batch is a filler on rank 0
        ({"make": optim.AdamW, "transform": on_the_host}, [6, 6]),
        ({"grad_dtype": "bf16"}, [6, 6]),
        ({"callbacks": [Gradients()]}, [6, 6]),
        ({"precision": "fp16", "prepare": start_scale}, [6, 6]),
    ],
    ids=[
        "batch norm and dropout",
        "uneven",
        "filler",
        "AdamW",
        "bf16 sent",
        "callback",
        "loss scale",
    ],
)
def test_ranks_that_replay_have_the_bits_and_the_calls_of_eager_ones(gpu, options, replayed):
    eager, found = (
        run(2, lambda comm, g=g: fitted(comm, gpu, g, **options)) for g in (False, True)
    )
    assert_same_as_eager(found, eager)
    assert [replays(trainer) for _, _, trainer in found] == replayed
    assert [trainer._guard.graph.reason for _, _, trainer in found] == ["", ""]
    if "precision" in options:
        scales = [trainer.scaler.state_dict() for _, _, trainer in (*eager, *found)]
        assert all(scale == scales[0] for scale in scales)
        assert scales[0]["skipped"] > 1


def test_a_replayed_step_is_two_launches_on_each_rank(gpu):
    counts = []

    class Count(train.Callback):
        def on_batch_end(self, trainer):
            counts.append(dict(launches))
            launches.clear()

    with cuda.count_launches() as launches:
        run(2, lambda comm: fitted(comm, gpu, True, images=20, epochs=1, callbacks=[Count()])[2])
    total = sum((sum(count.values()) for count in counts[3:]), 0) + sum(launches.values())
    graphs = sum(count.get("graph", 0) for count in counts) + launches["graph"]
    assert graphs == 2 * 2 * 3  # ranks, graphs, steps
    assert total <= graphs


def test_replaying_and_eager_steps_mix_between_the_ranks(gpu):
    """A rank that only this test knows to be eager says nothing to the other."""

    def never(trainer):
        if trainer.ranks.rank == 1:
            trainer._guard.graph.step = lambda images, labels: False

    eager = run(2, lambda comm: fitted(comm, gpu, False))
    found = run(2, lambda comm: fitted(comm, gpu, True, prepare=never))
    assert_same_as_eager(found, eager)
    assert [replays(trainer) for _, _, trainer in found] == [6, 0]


class Item(nn.Module):
    """Reads a value, which no graph can."""

    def forward(self, x):
        x.data.sum().item()
        return x


class Copy(nn.Module):
    def forward(self, x):
        return x * 1.0


def test_if_one_rank_cannot_capture_all_run_eagerly_and_rank_0_says_why(gpu, capsys):
    def program(comm, graph):
        return fitted(comm, gpu, graph, more=[Item() if comm.rank else Copy()])

    eager, found = (run(2, lambda comm, g=g: program(comm, g)) for g in (False, True))
    assert_same_as_eager(found, eager)
    error = capsys.readouterr().err
    assert error.count("note: training steps run without a CUDA graph") == 1
    assert "a CUDA graph: rank 1: it copies a value from or to the host" in error
    assert found[0][2]._guard.graph._captured is None
    assert found[0][2]._guard.graph._seen.total() == 3


def test_a_hook_on_one_rank_for_some_steps_makes_all_of_them_eager(gpu):
    def watched(comm, graph):
        handles = []

        def prepare(trainer):
            step = trainer.train_step

            def train_step(images, labels):
                if trainer.step == 4 and comm.rank:
                    layer = trainer.model.layers[0]
                    handles.append(layer.register_forward_hook(lambda *args: None))
                elif trainer.step == 5 and comm.rank:
                    handles.pop().remove()
                step(images, labels)

            trainer.train_step = train_step

        return fitted(comm, gpu, graph, images=40, epochs=3, prepare=prepare)

    eager, found = (run(2, lambda comm, g=g: watched(comm, g)) for g in (False, True))
    assert_same_as_eager(found, eager)
    assert all(replays(trainer) > 5 for _, _, trainer in found)


def test_synchronised_batch_norm_is_not_captured(gpu, capsys):
    eager, found = (
        run(2, lambda comm, g=g: fitted(comm, gpu, g, sync=True)) for g in (False, True)
    )
    assert_same_as_eager(found, eager)
    assert [replays(trainer) for _, _, trainer in found] == [0, 0]
    assert capsys.readouterr().err.count("SyncBatchNorm adds over the ranks") == 1


def test_a_distributed_optimizer_of_your_own_that_reduces_is_not_captured(gpu):
    def program(comm):
        trainer = build(comm, gpu, True, 8, 4)
        image = next(iter(trainer.loader))[0]
        kept = DistributedOptimizer(trainer.optimizer, comm)
        with kept.no_sync():
            quiet = trainer._guard.graph._unfit(image)
        return quiet, trainer._guard.graph._unfit(image)

    assert run(2, program) == [("", "a hook of a parameter runs in every step")] * 2


@pytest.mark.parametrize("gpu", [SECOND_CUDA])
def test_nccl_reduces_between_the_graphs(gpu, monkeypatch):
    cupy_with_fake_nccl(monkeypatch)
    found = []
    for graph in (False, True):

        def program(comm, graph=graph):
            trainer = build(comm, str(comm.device), graph, 18, 4)
            trainer.fit(2)
            return arrays_of(trainer), list(comm._comm.calls), replays(trainer)

        found.append(nccl_ranks(2, program))
    for (eager, eager_calls, _), (arrays, calls, count) in zip(*found, strict=True):
        assert differences(arrays, eager) == []
        assert calls == eager_calls
        assert count == 6


def test_the_reason_is_what_the_rank_tells_the_others(gpu):
    def program(comm):
        trainer = build(comm, gpu, None if comm.rank == 0 else False, 8, 4)
        trainer.fit(1)
        return trainer.ranks.elsewhere

    assert run(2, program) == ["rank 1: graph=False", ""]


# --- seeded faults ---


def test_a_sum_that_is_left_out_is_seen(gpu, monkeypatch):
    eager = run(2, lambda comm: fitted(comm, gpu, False))

    def exchange(ranks, own):  # without the gradients
        ranks.comm.allreduce(own)

    monkeypatch.setattr(ManyRanks, "exchange", exchange)
    found = run(2, lambda comm: fitted(comm, gpu, True))
    assert "0.weight" in differences(found[0][0], eager[0][0])
    assert "5.weight" in differences(found[0][0], found[1][0])
