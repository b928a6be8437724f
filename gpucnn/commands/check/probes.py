"""Part 9: DLPack, running out of memory, streams, graphs, copies between GPUs, NCCL."""

import importlib.util
from typing import Any

import numpy as np

import gpucnn
from gpucnn import nn, ops
from gpucnn.commands.check import reductions, step_modes
from gpucnn.commands.check.beside_cpu import host
from gpucnn.commands.check.part import Reporter
from gpucnn.errors import OutOfMemory

_HEADROOM = 4 * 2**20  # bytes left in the pool; the first layer needs 32 MiB


def examine(reporter: Reporter) -> None:
    device = reporter.device
    with device.xp.cuda.Device(device.index):
        reporter.run("DLPack with PyTorch", _dlpack, reporter)
        reporter.run("out of memory", _out_of_memory, reporter)
        reporter.run("non-default stream", _stream, reporter)
        reporter.run("graph", step_modes.graph, reporter)
        if reporter.simulated:
            reporter.skip("peer copies", "the simulator is one device")
        else:
            reporter.run("peer copies", _peers, reporter)
    reductions.examine(reporter)


def _dlpack(reporter: Reporter) -> None:
    if importlib.util.find_spec("torch") is None:
        reporter.skip("DLPack with PyTorch", "torch is not installed", "pip install torch")
        return
    import torch

    if not reporter.simulated and not torch.cuda.is_available():
        reporter.skip("DLPack with PyTorch", f"torch {torch.__version__} sees no CUDA device")
        return
    torch_device = "cpu" if reporter.simulated else f"cuda:{reporter.device.index}"
    mine = gpucnn.tensor(np.arange(12, dtype=np.float32).reshape(3, 4), reporter.device)
    theirs = torch.from_dlpack(mine)
    theirs += 1
    _synchronize(reporter, torch)
    shared = bool((host(mine) == np.arange(1, 13).reshape(3, 4)).all())
    _report_sharing(
        reporter,
        "gpucnn to PyTorch",
        shared and str(theirs.device) == torch_device,
        f"on {theirs.device}",
    )
    given = torch.arange(12, dtype=torch.float32, device=torch_device)
    taken = gpucnn.from_dlpack(given)
    given += 1
    _synchronize(reporter, torch)
    shared = bool((host(taken) == np.arange(1, 13)).all())
    _report_sharing(reporter, "PyTorch to gpucnn", shared, f"on {taken.device}")


def _report_sharing(reporter: Reporter, what: str, shared: bool, location: str) -> None:
    if shared:
        reporter.ok(what, f"the same memory, {location}")
    else:
        reporter.fail(what, f"one library did not see what the other wrote, {location}")


def _synchronize(reporter: Reporter, torch: Any) -> None:
    if not reporter.simulated:
        torch.cuda.synchronize()
    reporter.device.xp.cuda.Device(reporter.device.index).synchronize()


def _out_of_memory(reporter: Reporter) -> None:
    """A batch that is too large raises OutOfMemory; a smaller one runs afterwards."""
    pool = reporter.device.xp.get_default_memory_pool()
    model = _network().to(reporter.device)
    x = gpucnn.tensor(np.zeros((512, 32, 32, 3), np.float32), reporter.device)
    pool.free_all_blocks()
    before = pool.get_limit()
    pool.set_limit(size=pool.total_bytes() + _HEADROOM)
    try:
        model(x)
    except OutOfMemory as error:
        reporter.ok("out of memory", str(error))
    else:
        reporter.fail("out of memory", f"a layer that needs 32 MiB fits into {_HEADROOM >> 20} MiB")
    finally:
        pool.set_limit(size=before)
    logits = host(model(gpucnn.tensor(np.zeros((2, 32, 32, 3), np.float32), reporter.device)))
    if not np.isfinite(logits).all():
        reporter.fail("after running out of memory", "a smaller batch gives NaN or infinity")


def _network() -> nn.Sequential:
    """A small network with the usual kinds of layers."""
    rng = np.random.default_rng(2)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, generator=rng), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(16, 24, 3, padding=1, generator=rng), nn.BatchNorm2d(24), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(384, 10, generator=rng),
    )  # fmt: skip


def _stream(reporter: Reporter) -> None:
    """A step on a non-blocking stream gives the same bits as one on the default stream."""
    xp = reporter.device.xp
    expected = _gradients(reporter)
    xp.cuda.Device(reporter.device.index).synchronize()
    stream = xp.cuda.Stream(non_blocking=True)
    with stream:
        actual = _gradients(reporter)
    stream.synchronize()
    differ = [
        name
        for name, array in expected.items()
        if host(array).tobytes() != host(actual[name]).tobytes()
    ]
    if differ:
        reporter.fail("non-default stream", f"different bits in {', '.join(differ[:5])}")
    else:
        reporter.ok("non-default stream", f"{len(expected)} gradients are bit-identical")


def _gradients(reporter: Reporter) -> dict[str, Any]:
    """The gradients of one step on two images, on the device."""
    gpucnn.manual_seed(2)  # for dropout
    model = _network().to(reporter.device)
    x = np.random.default_rng(3).standard_normal((2, 32, 32, 3), np.float32)
    loss = ops.cross_entropy(
        model(gpucnn.tensor(x, reporter.device)), gpucnn.tensor(np.array([0, 1]), reporter.device)
    )
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def _peers(reporter: Reporter) -> None:
    """Copies between two GPUs, in both directions."""
    xp = reporter.device.xp
    runtime = xp.cuda.runtime
    count = runtime.getDeviceCount()
    if count < 2:
        reporter.skip("peer copies", "there is only one GPU")
        return
    here, there = reporter.device.index, (reporter.device.index + 1) % count
    direct = [runtime.deviceCanAccessPeer(a, b) for a, b in ((here, there), (there, here))]
    numbers = np.random.default_rng(8).standard_normal(2**20).astype(np.float32)
    x = gpucnn.tensor(numbers, f"cuda:{here}")
    for a, b in ((here, there), (there, here)):
        x = x.to(f"cuda:{b}")
        if str(x.device) != f"cuda:{b}" or host(x).tobytes() != numbers.tobytes():
            reporter.fail("peer copies", f"different bits after a copy from cuda:{a} to cuda:{b}")
            return
    with xp.cuda.Device(here):
        source = xp.asarray(numbers)
    with xp.cuda.Device(there):
        target = xp.empty_like(source)
        target.data.copy_from_device(source.data, source.nbytes)
        xp.cuda.Device(there).synchronize()
    if target.get().tobytes() != numbers.tobytes():
        reporter.fail(
            "peer copies", f"different bits after CuPy's copy from cuda:{here} to cuda:{there}"
        )
        return
    reporter.ok("peer copies", f"cuda:{here} and cuda:{there}, direct access: {direct}")
