"""Part 6: the training step: its time and speed by batch, the host's share, memory, an epoch."""

import cProfile
import pstats
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn
from gpucnn import cuda, data, models, nn, ops, optim
from gpucnn.commands.check.measure import Spin, between_events, training_operations
from gpucnn.commands.check.part import Out
from gpucnn.commands.check.program import training_step
from gpucnn.device import Device
from gpucnn.errors import OutOfMemory

_BATCHES = (32, 64, 128, 256, 512, 1024)
_QUICK = (32, 128)
_SIMULATED = (2, 4)
_ROUNDS = 5
_STEPS = 20  # timed in a round, at most
_EPOCH_BATCH = 128
_FUNCTIONS = 15  # of the host's profile
_DRAWN = 5000  # images, where there is no CIFAR-10


class _Pace:
    """Seconds that a step takes, by its images: what is left out for want of time."""

    def __init__(self) -> None:
        self.per_image = 0.0

    def seconds(self, batch: int) -> float:
        return self.per_image * batch


def examine(out: Out) -> None:
    device = out.device
    with device.xp.cuda.Device(device.index):
        spin, pace = Spin(device), _Pace()
        out.run("first step", _first, out, device, pace)
        batches = _QUICK if out.task.quick else _BATCHES
        for batch in _SIMULATED[: 1 if out.task.quick else 2] if out.simulated else batches:
            out.run(f"batch {batch}", _batch_if_it_fits, out, device, batch, spin, pace)
        out.run("host", _host, out, device, spin, pace)
        out.run("epoch", _epoch, out, device, pace)


def _first(out: Out, device: Device, pace: _Pace) -> None:
    """The first step of a process, and one that has nothing left to compile."""
    name = out.task.model
    pace.per_image = out.seconds(training_operations(models.build(name), name))
    if pace.seconds(2) > out.left() / 8:
        out.skip("first step", f"one on 2 images would take {pace.seconds(2):.0f} s here")
        return
    times = []
    step = training_step(device, name, 2)
    for _ in range(2):
        start = time.perf_counter()
        loss = step().item()
        times.append(time.perf_counter() - start)
    if not np.isfinite(loss):
        out.fail("loss", f"{loss} after two steps on random images")
    pace.per_image = times[1] / 2
    out.ok("first step", f"{times[0]:.2f} s, with what is compiled for it; the next {times[1]:.3f}")


def _batch_if_it_fits(out: Out, device: Device, batch: int, spin: Spin, pace: _Pace) -> None:
    try:
        _batch(out, device, batch, spin, pace)
    except OutOfMemory as error:
        out.skip(f"batch {batch}", str(error).splitlines()[0])


def _batch(out: Out, device: Device, batch: int, spin: Spin, pace: _Pace) -> None:
    name = out.task.model
    room = out.left() * 0.4
    if pace.seconds(batch) * 4 > room:
        out.skip(f"batch {batch}", f"a step would take about {pace.seconds(batch):.1f} s here")
        return
    xp = device.xp
    pool = xp.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    step = training_step(device, name, batch)
    for _ in range(2):
        start = time.perf_counter()
        step().item()
        took = time.perf_counter() - start
    pace.per_image = took / batch
    steps = max(min(_STEPS, int(room / took / (_ROUNDS + 3))), 1)
    rounds = [between_events(step, steps, device) for _ in range(_ROUNDS if steps > 1 else 1)]
    ms = statistics.median(rounds)
    memory = (pool.total_bytes() - before) / 2**20
    row: dict[str, Any] = {"batch": batch, "ms": ms, "images/s": batch / ms * 1e3}
    operations = training_operations(models.build(name), name) * batch
    row["TFLOP/s"] = operations / ms / 1e9
    if not out.simulated:
        ceiling = out.task.facts.get("fp32")
        row["of the fp32 product"] = f"{operations / ms * 1e3 / ceiling:.0%}" if ceiling else ""
        queued = [spin.queue(step) for _ in range(3)]
        row["device ms"] = statistics.median(one.device_ms for one in queued)
        row["host ms"] = statistics.median(one.host_ms for one in queued)
        row["covered"] = "yes" if all(one.covered for one in queued) else "no"
    row["memory MiB"] = memory
    out.row(f"Training step of {name}, {_ROUNDS} rounds of at most {_STEPS} steps", row)
    if batch == 128 and not out.simulated:
        words = f"step of {batch}: {ms:.2f} ms, {row['TFLOP/s']:.3g} TFLOP/s"
        share = row.get("of the fp32 product")
        out.headline(words + (f" ({share} of a product)" if share else ""))


def _host(out: Out, device: Device, spin: Spin, pace: _Pace) -> None:
    """What Python takes to queue a step while the device is busy, and where it goes."""
    if out.simulated:
        out.skip(
            "host",
            "the simulator works inside the calls; benchmarks/host_overhead.py leaves it out",
        )
        return
    batch = 32 if pace.seconds(32) * 20 < out.left() / 4 else 1
    if pace.seconds(batch) * 8 > out.left() / 2:
        out.skip("host", f"{8 * batch} images would take {pace.seconds(batch) * 8:.0f} s here")
        return
    step = training_step(device, out.task.model, batch)
    step()
    with cuda.count_launches() as launches:
        step()
    repeats = max(min(20, int(out.left() / 8 / max(pace.seconds(batch), 1e-3))), 2)
    queued = [spin.queue(step) for _ in range(repeats)]
    covered = [one.host_ms for one in queued if one.covered]
    if not covered:
        out.note("host", "the device was never busy for as long as the host took: no exact figure")
    else:
        count = sum(launches.values())
        host = statistics.median(covered)
        out.ok("host", f"{host:.3f} ms to queue a step, {count} launches, least {min(covered):.3f}")
        out.headline(f"host {host:.2f} ms a step")
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(repeats):
        step()
    profile.disable()
    device.xp.cuda.Device(device.index).synchronize()
    _table(out, profile, repeats)


def _table(out: Out, profile: cProfile.Profile, steps: int) -> None:
    stats: Any = pstats.Stats(profile)
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:_FUNCTIONS]
    for (file, line, function), (_, calls, own, total, _) in rows:
        place = f"{Path(file).parent.name}/{Path(file).name}:{line} " if line else ""
        out.row(
            "The host's time in a step, by function, with the profiler's own share",
            {"function": place + function, "calls": calls / steps, "own us": own / steps * 1e6,
             "with callees us": total / steps * 1e6},
        )  # fmt: skip


def _epoch(out: Out, device: Device, pace: _Pace) -> None:
    """An epoch of CIFAR-10, or of drawn shapes, or as much of it as there is time for."""
    name = out.task.model
    if models.input_shape(name) != (32, 32, 3):
        out.skip("epoch", f"the images here are 32 x 32 in colour, {name} takes others")
        return
    batch = _EPOCH_BATCH
    while batch > 1 and pace.seconds(batch) * 8 > out.left():
        batch //= 2
    if pace.seconds(batch) * 8 > out.left():
        out.skip("epoch", f"a step would take about {pace.seconds(batch):.1f} s here")
        return
    # Reading or drawing images costs seconds: few where few can be trained on.
    many = pace.seconds(_DRAWN) < out.left() / 2
    pair, where = (None, "")
    if many and not out.task.quick:
        pair, where = data.find_cifar10(download=False)
    train = data.Synthetic(n=_DRAWN if many else 4 * batch) if pair is None else pair[0]
    what = "drawn shapes" if pair is None else where
    model: nn.Module = models.build(name, generator=np.random.default_rng(0)).to(device)
    optimizer = optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    normalize = data.Normalize(*data.channel_statistics(train.images))
    transform = data.Compose([data.RandomCrop(32, 4), data.RandomHorizontalFlip(), normalize])
    loader = data.DataLoader(train, batch, shuffle=True, transform=transform, device=device)
    seen, losses, start, end = 0, [], 0.0, time.perf_counter() + out.left() * 0.7
    for images, labels in loader:
        loss = ops.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.data)
        if not start:  # the first step is not counted: it fills the pool
            loss.item()
            start = time.perf_counter()
            continue
        seen += len(images)
        if time.perf_counter() > end:
            break
    last = gpucnn.Tensor(losses[-1]).item()
    seconds = time.perf_counter() - start
    if not seen:
        out.note("epoch", "one step was all there was time for")
        return
    if not np.isfinite(last):
        out.fail("epoch", f"the loss is {last} after {len(losses)} steps")
        return
    whole = "an epoch" if len(losses) == len(loader) else f"{len(losses)} of {len(loader)} steps"
    out.ok(
        "epoch",
        f"{whole} of {what}, batches of {batch}: {seconds:.2f} s, {seen / seconds:,.0f} images/s, "
        f"loss {gpucnn.Tensor(losses[0]).item():.3f} to {last:.3f}",
    )
    if not out.simulated:
        out.headline(f"training {seen / seconds:,.0f} images/s")
