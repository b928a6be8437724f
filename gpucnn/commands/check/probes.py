"""Part 9: shared memory, too little of it, streams, graphs, two cards."""

import importlib.util
import time
from typing import Any

import numpy as np

import gpucnn
from gpucnn import nn, ops
from gpucnn.commands.check.beside_cpu import host
from gpucnn.commands.check.part import Out
from gpucnn.errors import OutOfMemory

_ROOM = 4 * 2**20  # bytes that are left to a batch whose first layer makes 32 MiB


def examine(out: Out) -> None:
    device = out.device
    with device.xp.cuda.Device(device.index):
        out.run("DLPack with PyTorch", _dlpack, out)
        out.run("out of memory", _out_of_memory, out)
        out.run("a stream of one's own", _stream, out)
        if out.simulated:
            out.skip("graph", "the simulator has none")
            out.skip("peer copies", "the simulator is one device")
            return
        out.run("graph", _graph, out)
        out.run("peer copies", _peers, out)


def _dlpack(out: Out) -> None:
    if importlib.util.find_spec("torch") is None:
        out.skip("DLPack with PyTorch", "torch is not installed", "pip install torch")
        return
    import torch

    if not out.simulated and not torch.cuda.is_available():
        out.skip("DLPack with PyTorch", f"torch {torch.__version__} sees no CUDA device")
        return
    place = "cpu" if out.simulated else f"cuda:{out.device.index}"
    mine = gpucnn.tensor(np.arange(12, dtype=np.float32).reshape(3, 4), out.device)
    theirs = torch.from_dlpack(mine)
    theirs += 1
    _synchronize(out, torch)
    shared = bool((host(mine) == np.arange(1, 13).reshape(3, 4)).all())
    _say(out, "gpucnn to PyTorch", shared and str(theirs.device) == place, f"on {theirs.device}")
    given = torch.arange(12, dtype=torch.float32, device=place)
    taken = gpucnn.from_dlpack(given)
    given += 1
    _synchronize(out, torch)
    shared = bool((host(taken) == np.arange(1, 13)).all())
    _say(out, "PyTorch to gpucnn", shared, f"on {taken.device}")


def _say(out: Out, what: str, right: bool, where: str) -> None:
    if right:
        out.ok(what, f"the same memory, {where}")
    else:
        out.fail(what, f"what one library wrote, the other did not see, {where}")


def _synchronize(out: Out, torch: Any) -> None:
    if not out.simulated:
        torch.cuda.synchronize()
    out.device.xp.cuda.Device(out.device.index).synchronize()


def _out_of_memory(out: Out) -> None:
    """A batch that does not fit says who wanted how much; a smaller one fits afterwards."""
    pool = out.device.xp.get_default_memory_pool()
    model = _network().to(out.device)
    x = gpucnn.tensor(np.zeros((512, 32, 32, 3), np.float32), out.device)
    pool.free_all_blocks()
    before = pool.get_limit()
    pool.set_limit(size=pool.total_bytes() + _ROOM)
    try:
        model(x)
    except OutOfMemory as error:
        out.ok("out of memory", str(error))
    else:
        out.fail("out of memory", f"{_ROOM >> 20} MiB held what takes 32")
    finally:
        pool.set_limit(size=before)
    logits = host(model(gpucnn.tensor(np.zeros((2, 32, 32, 3), np.float32), out.device)))
    if not np.isfinite(logits).all():
        out.fail("after running out of memory", "a smaller batch gives numbers that are not finite")


def _network() -> nn.Sequential:
    """Small, with each layer that most networks have."""
    rng = np.random.default_rng(2)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, generator=rng), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(16, 24, 3, padding=1, generator=rng), nn.BatchNorm2d(24), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(384, 10, generator=rng),
    )  # fmt: skip


def _stream(out: Out) -> None:
    """A step on a non-blocking stream leaves the bits of one on the default stream."""
    xp = out.device.xp
    expected = _after_a_step(out)
    xp.cuda.Device(out.device.index).synchronize()
    stream = xp.cuda.Stream(non_blocking=True)
    with stream:
        found = _after_a_step(out)
    stream.synchronize()
    differ = [
        name
        for name, array in expected.items()
        if host(array).tobytes() != host(found[name]).tobytes()
    ]
    if differ:
        out.fail("a stream of one's own", f"other bits in {', '.join(differ[:5])}")
    else:
        out.ok("a stream of one's own", f"{len(expected)} gradients to the bit")


def _after_a_step(out: Out) -> dict[str, Any]:
    """The gradients, on the device, of one step on two images."""
    gpucnn.manual_seed(2)  # of dropout
    model = _network().to(out.device)
    x = np.random.default_rng(3).standard_normal((2, 32, 32, 3), np.float32)
    loss = ops.cross_entropy(
        model(gpucnn.tensor(x, out.device)), gpucnn.tensor(np.array([0, 1]), out.device)
    )
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def _graph(out: Out) -> None:
    """Launches captured into a graph, replayed on new numbers: the bits of plain launches.

    Convolutions and pools: CuPy refuses cuBLAS, which dense layers call, while it captures.
    """
    xp = out.device.xp
    rng = np.random.default_rng(6)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, generator=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, generator=rng), nn.BatchNorm2d(32), nn.ReLU(),
    ).to(out.device).eval()  # fmt: skip
    images = [rng.standard_normal((4, 16, 16, 3), np.float32) for _ in range(2)]
    x = gpucnn.tensor(images[0], out.device)
    pool = xp.cuda.MemoryPool()  # the graph's own: what it captured is nobody else's
    stream = xp.cuda.Stream(non_blocking=True)
    with gpucnn.no_grad():
        expected = [host(model(gpucnn.tensor(a, out.device))) for a in images]
        xp.cuda.Device(out.device.index).synchronize()
        with stream, xp.cuda.using_allocator(pool.malloc):
            model(x)  # what is compiled, and what the pool needs, is there after this
            stream.synchronize()
            stream.begin_capture()
            try:
                y = model(x)
            finally:
                graph = stream.end_capture()
            wrong = []
            for number, (given, right) in enumerate(zip(images, expected, strict=True)):
                x.data.set(given)
                y.data.fill(0)
                start = time.perf_counter()
                graph.launch(stream)
                launched = time.perf_counter() - start
                stream.synchronize()
                if host(y).tobytes() != right.tobytes():
                    wrong.append(number)
    if wrong:
        out.fail("graph", f"replay {wrong[0] + 1} of 2 has other bits than plain launches")
    else:
        out.ok("graph", f"two replays to the bit, {launched * 1e6:.0f} us to launch one")


def _peers(out: Out) -> None:
    """Copies between two cards, both ways."""
    xp = out.device.xp
    runtime = xp.cuda.runtime
    count = runtime.getDeviceCount()
    if count < 2:
        out.skip("peer copies", "one card")
        return
    here, there = out.device.index, (out.device.index + 1) % count
    direct = [runtime.deviceCanAccessPeer(a, b) for a, b in ((here, there), (there, here))]
    numbers = np.random.default_rng(8).standard_normal(2**20).astype(np.float32)
    x = gpucnn.tensor(numbers, f"cuda:{here}")
    for a, b in ((here, there), (there, here)):
        x = x.to(f"cuda:{b}")
        if str(x.device) != f"cuda:{b}" or host(x).tobytes() != numbers.tobytes():
            out.fail("peer copies", f"other bits after a copy from cuda:{a} to cuda:{b}")
            return
    with xp.cuda.Device(here):
        source = xp.asarray(numbers)
    with xp.cuda.Device(there):
        target = xp.empty_like(source)
        target.data.copy_from_device(source.data, source.nbytes)
        xp.cuda.Device(there).synchronize()
    if target.get().tobytes() != numbers.tobytes():
        out.fail("peer copies", f"other bits after CuPy's copy from cuda:{here} to cuda:{there}")
        return
    out.ok("peer copies", f"cuda:{here} and cuda:{there}, access without the host: {direct}")
