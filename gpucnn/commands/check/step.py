"""Part 6: the training step: time and speed by batch size, host time, memory, an epoch."""

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
from gpucnn.commands.check.part import Reporter
from gpucnn.commands.check.program import training_step
from gpucnn.device import Device
from gpucnn.errors import OutOfMemory
from gpucnn.precision import uses_tf32

_BATCHES = (32, 64, 128, 256, 512, 1024)
_QUICK = (32, 128)
_SIMULATED = (2, 4)
_ROUNDS = 5
_STEPS = 20  # timed per round, at most
_EPOCH_BATCH = 128
_FUNCTIONS = 15  # listed of the host's profile
_DRAWN = 5000  # synthetic images, without CIFAR-10


class _Pace:
    """Estimates the seconds of a step from earlier ones, to skip what would take too long."""

    def __init__(self) -> None:
        self.per_image = 0.0

    def seconds(self, batch: int) -> float:
        return self.per_image * batch


def examine(reporter: Reporter) -> None:
    device = reporter.device
    with device.xp.cuda.Device(device.index):
        spin, pace = Spin(device), _Pace()
        reporter.run("first step", _first, reporter, device, pace)
        batches = _QUICK if reporter.task.quick else _BATCHES
        for batch in (
            _SIMULATED[: 1 if reporter.task.quick else 2] if reporter.simulated else batches
        ):
            reporter.run(f"batch {batch}", _batch_if_it_fits, reporter, device, batch, spin, pace)
        reporter.run("host", _host, reporter, device, spin, pace)
        reporter.run("epoch", _epoch, reporter, device, pace)


def _first(reporter: Reporter, device: Device, pace: _Pace) -> None:
    """Time the first step of a process, and a second one, with all kernels compiled."""
    name = reporter.task.model
    pace.per_image = reporter.estimated_seconds(training_operations(models.build(name), name))
    if pace.seconds(2) > reporter.seconds_left() / 8:
        reporter.skip("first step", f"a step on 2 images would take {pace.seconds(2):.0f} s here")
        return
    times = []
    step = training_step(device, name, 2)
    for _ in range(2):
        start = time.perf_counter()
        loss = step().item()
        times.append(time.perf_counter() - start)
    if not np.isfinite(loss):
        reporter.fail("loss", f"{loss} after two steps on random images")
    pace.per_image = times[1] / 2
    reporter.ok("first step", f"{times[0]:.2f} s including compilation, the next {times[1]:.3f} s")


def _batch_if_it_fits(
    reporter: Reporter, device: Device, batch: int, spin: Spin, pace: _Pace
) -> None:
    try:
        _batch(reporter, device, batch, spin, pace)
    except OutOfMemory as error:
        reporter.skip(f"batch {batch}", str(error).splitlines()[0])


def _batch(reporter: Reporter, device: Device, batch: int, spin: Spin, pace: _Pace) -> None:
    name = reporter.task.model
    budget = reporter.seconds_left() * 0.4  # seconds
    if pace.seconds(batch) * 4 > budget:
        reporter.skip(f"batch {batch}", f"a step would take about {pace.seconds(batch):.1f} s here")
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
    steps = max(min(_STEPS, int(budget / took / (_ROUNDS + 3))), 1)
    rounds = [between_events(step, steps, device) for _ in range(_ROUNDS if steps > 1 else 1)]
    ms = statistics.median(rounds)
    memory = (pool.total_bytes() - before) / 2**20
    row: dict[str, Any] = {"batch": batch, "ms": ms, "images/s": batch / ms * 1e3}
    operations = training_operations(models.build(name), name) * batch
    row["TFLOP/s"] = operations / ms / 1e9
    row["precision"] = "tf32" if uses_tf32(device) else "fp32"
    if not reporter.simulated:
        ceiling = reporter.task.facts.get(row["precision"])
        row["of its product"] = f"{operations / ms * 1e3 / ceiling:.0%}" if ceiling else ""
        queued = [spin.queue(step) for _ in range(3)]
        row["device ms"] = statistics.median(one.device_ms for one in queued)
        row["host ms"] = statistics.median(one.host_ms for one in queued)
        row["covered"] = "yes" if all(one.covered for one in queued) else "no"
    row["memory MiB"] = memory
    reporter.row(f"Training step of {name}, {_ROUNDS} rounds of at most {_STEPS} steps", row)
    if batch == 128 and not reporter.simulated:
        words = f"step of {batch}: {ms:.2f} ms, {row['TFLOP/s']:.3g} TFLOP/s in {row['precision']}"
        share = row.get("of its product")
        reporter.headline(words + (f" ({share} of a product)" if share else ""))


def _host(reporter: Reporter, device: Device, spin: Spin, pace: _Pace) -> None:
    """Measure and profile Python's time to queue a step while the device is busy."""
    if reporter.simulated:
        reporter.skip(
            "host",
            "the simulator computes inside the calls; benchmarks/host_overhead.py excludes that",
        )
        return
    batch = 32 if pace.seconds(32) * 20 < reporter.seconds_left() / 4 else 1
    if pace.seconds(batch) * 8 > reporter.seconds_left() / 2:
        reporter.skip("host", f"{8 * batch} images would take {pace.seconds(batch) * 8:.0f} s here")
        return
    step = training_step(device, reporter.task.model, batch)
    step()
    with cuda.count_launches() as launches:
        step()
    repeats = max(min(20, int(reporter.seconds_left() / 8 / max(pace.seconds(batch), 1e-3))), 2)
    queued = [spin.queue(step) for _ in range(repeats)]
    covered = [one.host_ms for one in queued if one.covered]
    if not covered:
        reporter.note("host", "the device was never busy long enough: no exact figure")
    else:
        count = sum(launches.values())
        host = statistics.median(covered)
        reporter.ok(
            "host", f"{host:.3f} ms to queue a step, {count} launches, minimum {min(covered):.3f}"
        )
        reporter.headline(f"host {host:.2f} ms per step")
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(repeats):
        step()
    profile.disable()
    device.xp.cuda.Device(device.index).synchronize()
    _table(reporter, profile, repeats)


def _table(reporter: Reporter, profile: cProfile.Profile, steps: int) -> None:
    stats: Any = pstats.Stats(profile)
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:_FUNCTIONS]
    for (file, line, function), (_, calls, own, total, _) in rows:
        location = f"{Path(file).parent.name}/{Path(file).name}:{line} " if line else ""
        reporter.row(
            "Host time of a step by function, profiler overhead included",
            {"function": location + function, "calls": calls / steps, "own us": own / steps * 1e6,
             "with callees us": total / steps * 1e6},
        )  # fmt: skip


def _epoch(reporter: Reporter, device: Device, pace: _Pace) -> None:
    """Train an epoch of CIFAR-10 or of synthetic images, or as much as the time allows."""
    name = reporter.task.model
    if models.input_shape(name) != (32, 32, 3):
        reporter.skip("epoch", f"the images are 32 x 32 x 3; {name} takes another shape")
        return
    batch = _EPOCH_BATCH
    while batch > 1 and pace.seconds(batch) * 8 > reporter.seconds_left():
        batch //= 2
    if pace.seconds(batch) * 8 > reporter.seconds_left():
        reporter.skip("epoch", f"a step would take about {pace.seconds(batch):.1f} s here")
        return
    # Reading or drawing images takes seconds: do not make more than there is time to train on.
    many = pace.seconds(_DRAWN) < reporter.seconds_left() / 2
    pair, source = (None, "")
    if many and not reporter.task.quick:
        pair, source = data.find_cifar10(download=False)
    train = data.Synthetic(n=_DRAWN if many else 4 * batch) if pair is None else pair[0]
    what = "synthetic images" if pair is None else source
    model: nn.Module = models.build(name, generator=np.random.default_rng(0)).to(device)
    optimizer = optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    normalize = data.Normalize(*data.channel_statistics(train.images))
    transform = data.Compose([data.RandomCrop(32, 4), data.RandomHorizontalFlip(), normalize])
    loader = data.DataLoader(train, batch, shuffle=True, transform=transform, device=device)
    seen, losses, start, end = 0, [], 0.0, time.perf_counter() + reporter.seconds_left() * 0.7
    for images, labels in loader:
        loss = ops.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.data)
        if not start:  # do not count the first step: it fills the memory pool
            loss.item()
            start = time.perf_counter()
            continue
        seen += len(images)
        if time.perf_counter() > end:
            break
    last = gpucnn.Tensor(losses[-1]).item()
    seconds = time.perf_counter() - start
    if not seen:
        reporter.note("epoch", "there was time for only one step")
        return
    if not np.isfinite(last):
        reporter.fail("epoch", f"the loss is {last} after {len(losses)} steps")
        return
    whole = "an epoch" if len(losses) == len(loader) else f"{len(losses)} of {len(loader)} steps"
    reporter.ok(
        "epoch",
        f"{whole} of {what}, batches of {batch}: {seconds:.2f} s, {seen / seconds:,.0f} images/s, "
        f"loss {gpucnn.Tensor(losses[0]).item():.3f} to {last:.3f}",
    )
    if not reporter.simulated:
        reporter.headline(f"training {seen / seconds:,.0f} images/s")
