"""Predict how data-parallel training scales on GPUs: a model with stated inputs, not a measurement.

    one GPU's compute    | forward |loss| backward ...............|. exposed .|
    reductions                                | bucket 0 |        | bucket 1 |

A step takes  forward + allreduce of the loss + the later of (end of backward, end of reductions).
A bucket's reduction begins when backward has completed its gradients and the previous reduction has
ended.  Efficiency is the step of one GPU over that of n GPUs, each with the same batch: weak
scaling.

An allreduce is NCCL's ring, of n GPUs in machines of `gpus_per_machine`:

    launch + hops between GPUs + hops between machines + 2 (n - 1) / n * bytes / bandwidth

with 2 (n - 1) hops, of which 2 (machines - 1) cross the network.  NCCL runs as many rings at once
as a machine has adapters; each enters and leaves the machine through its own, so the machine's
adapters together are the bandwidth of the network.  The slower of NVLink and network counts.  NCCL
chooses the fastest of three protocols for each size, and so does the model.

Sources:
    2 (n - 1) / n    github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md
    NVLink 4         370 GB/s of the 450 GB/s of each direction, seen with rings on eight H100:
                     github.com/NVIDIA/nccl-tests/issues/212
    200 Gb/s         24 GB/s of 25, as 192 GB/s measured with eight adapters a machine:
                     github.com/NVIDIA/nccl/issues/812
    protocols        NCCL's own model: baseLat, hwLat and bandwidths of rings in src/graph/tuning.cc
    67 TFLOP/s       float32 of an H100 or H200 SXM, 495 in TF32: NVIDIA's data sheets.  The part
                     of it that a step reaches, counted as plain convolutions, is an assumption:
                     gpucnn has no measured GPU step yet.

The prediction is optimistic where it leaves out GPUs that differ in speed, the compute units and
memory bandwidth that NCCL takes from backward, other traffic, the loader, and a host that is not
ahead of the GPU.  It is pessimistic where it leaves out the update, NCCL's trees and the switches'
own reductions; the latter two are faster than rings on many machines.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

import gpucnn
from gpucnn import models, nn, optim
from gpucnn.distributed.optimizer import _buckets
from gpucnn.integers import ceil_div

PEAK, TF32_PEAK = 67e12, 495e12  # operations per second
LOSS_BYTES = 16  # loss and correct predictions, float64: a Trainer reduces them before backward


@dataclass(frozen=True)
class Protocol:
    """One of NCCL's ways to run a ring."""

    bandwidth: float  # the part of the link's bandwidth that it reaches
    launch: float  # seconds
    nvlink: float  # seconds a hop between GPUs of a machine
    network: float  # seconds a hop between machines


PROTOCOLS = (
    Protocol(0.25, 6.6e-6, 1.1e-6, 2.7e-6),  # LL; its hop is 0.6 us where no ring leaves a machine
    Protocol(0.92, 14.0e-6, 1.9e-6, 4.0e-6),  # LL128
    Protocol(1.00, 8.4e-6, 3.4e-6, 14.0e-6),  # Simple
)


@dataclass(frozen=True)
class Cluster:
    """Machines with GPUs; bandwidths are bytes per second in one direction."""

    gpus_per_machine: int = 8
    nvlink: float = 370e9  # a GPU's
    adapters: int = 8  # a machine's
    adapter: float = 24e9
    protocols: tuple[Protocol, ...] = PROTOCOLS


@dataclass(frozen=True)
class Bucket:
    nbytes: int
    ready: float  # the part of backward after which its gradients are complete, 0 to 1


@dataclass(frozen=True)
class Step:
    """A training step of one GPU: seconds of forward and backward, and its gradients."""

    forward: float
    backward: float
    buckets: tuple[Bucket, ...]

    @property
    def seconds(self) -> float:
        return self.forward + self.backward


def ring_seconds(nbytes: int, n: int, cluster: Cluster) -> float:
    """The time of an allreduce over n GPUs; 0 for one."""
    if n == 1:
        return 0.0
    machines = ceil_div(n, cluster.gpus_per_machine)
    hops, crossing = 2 * (n - 1), 2 * (machines - 1)
    link = cluster.nvlink
    if machines > 1:
        link = min(link, cluster.adapters * cluster.adapter)
    return min(
        protocol.launch
        + (hops - crossing) * protocol.nvlink
        + crossing * protocol.network
        + hops / n * nbytes / (protocol.bandwidth * link)
        for protocol in cluster.protocols
    )


def step_seconds(step: Step, n: int, cluster: Cluster, overlap: bool = True) -> float:
    """The time of a step on n GPUs; without overlap, reductions begin after backward."""
    end = 0.0  # of the reductions so far, from the start of backward
    for bucket in step.buckets:
        ready = step.backward * (bucket.ready if overlap else 1)
        end = max(end, ready) + ring_seconds(bucket.nbytes, n, cluster)
    return step.forward + ring_seconds(LOSS_BYTES, n, cluster) + max(step.backward, end)


def efficiency(step: Step, n: int, cluster: Cluster, overlap: bool = True) -> float:
    return step.seconds / step_seconds(step, n, cluster, overlap)


@dataclass(frozen=True)
class Workload:
    """What a step of a model does: multiply-adds per image, and the buckets of its gradients."""

    forward: int
    backward: int
    buckets: tuple[Bucket, ...]

    def step(self, batch: int, flops: float) -> Step:
        """The step of a GPU that reaches `flops` operations per second, two a multiply-add."""
        seconds = 2 * batch / flops
        return Step(self.forward * seconds, self.backward * seconds, self.buckets)


def workload(name: str, bucket_bytes: int = 25_000_000) -> Workload:
    """The Workload of the model `name`, with the buckets that DistributedOptimizer makes."""
    model = models.build(name).eval()
    x = gpucnn.tensor(np.zeros((1, *models.input_shape(name)), np.float32))
    calls: list[tuple[nn.Module, int, int]] = []  # multiply-adds of forward and backward

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        work = module.multiply_adds(inputs, output)
        # The images need no gradient: their layer computes only that of its weights.
        calls.append((module, work, work if inputs[0] is x else 2 * work))

    with gpucnn.no_grad(), nn.observe(count):
        model(x)
    total = sum(backward for _, _, backward in calls)
    done = 0
    ready: dict[int, float] = {}  # by the parameter's id
    for module, _, backward in reversed(calls):
        done += backward
        ready |= {id(parameter): done / total for parameter in module.parameters()}
    parameters = optim.SGD(model.parameters(), lr=0.1).parameters
    buckets = tuple(
        Bucket(
            sum(view.nbytes for view in bucket.views.values()),
            max(ready[id(parameters[i])] for i in bucket.views),
        )
        for bucket in _buckets(parameters, bucket_bytes, None)
    )
    return Workload(sum(forward for _, forward, _ in calls), total, buckets)


def least_step(work: Workload, n: int, cluster: Cluster, target: float) -> float:
    """The shortest step of one GPU, in seconds, whose efficiency on n GPUs is `target`."""
    low, high = 0.0, 1e4
    for _ in range(100):  # bisection: efficiency grows with the step
        middle = (low + high) / 2
        forward = middle * work.forward / (work.forward + work.backward)
        step = Step(forward, middle - forward, work.buckets)
        low, high = (low, middle) if efficiency(step, n, cluster) >= target else (middle, high)
    return high
