"""Predict the memory of a run before its first step, and refuse a batch that exceeds a limit."""

from collections.abc import Callable

from gpucnn.cpu import get_num_threads, give_back_freed_memory
from gpucnn.cpu.limits import resident_bytes
from gpucnn.device import CPU
from gpucnn.errors import ArgumentError, readable_size
from gpucnn.inspect.memory import TRACED, Growth
from gpucnn.integers import ceil_div
from gpucnn.nn import Module
from gpucnn.optim import Optimizer
from gpucnn.out_of_memory import used_bytes

_FEWER = 8  # the measured step has this fraction of the activations that full blocks need


def check_memory_limit(
    model: Module,
    optimizer: Optimizer,
    input_shape: tuple[int, ...],
    batch_size: int,
    limit_bytes: int,
    prefetch: int = 2,
    precision: str | None = None,
    micro_batches: int = 1,
) -> None:
    """Raise ArgumentError if training on batches of input_shape (H, W, C) would exceed the limit.

    Call it when model, optimizer and data set exist, before the first step.  The prediction is what
    the process uses by then (its resident memory, or the memory pool of a GPU), plus a step's
    activations, gradients and temporaries, the batch, and on the CPU the `prefetch` batches that
    the loader makes ahead and one that it is making.  precision and micro_batches are the
    Trainer's; with micro-batches, activations and temporaries are those of one.  In half
    precision most of a GPU's activations take half the bytes, and copies of weights count as
    activations; the CPU computes in float32 and saves little.  The prediction excludes evaluation
    on larger batches, what transforms allocate, fragmentation, and on a GPU the temporaries of
    operations.

    The error names the largest batch that fits.  On the CPU, the check runs the model on a few
    images, in less memory than the limit leaves.  Model and optimizer are left unchanged.
    """
    if batch_size < 1 or limit_bytes < 1 or prefetch < 0 or micro_batches < 1:
        raise ArgumentError(
            "check_memory_limit: expected batch_size >= 1, limit_bytes >= 1, prefetch >= 0 and "
            f"micro_batches >= 1, got {batch_size}, {limit_bytes}, {prefetch}, {micro_batches}"
        )
    growth = Growth(model, input_shape, precision)
    on_cpu = growth.device == CPU
    give_back_freed_memory()
    used = resident_bytes() if on_cpu else used_bytes(growth.device)
    batches = prefetch + 2 if on_cpu else 1
    largest = ceil_div(batch_size, micro_batches)
    work = _work(growth, largest, limit_bytes - used) if on_cpu else lambda n: 0

    def parts(n: int) -> tuple[int, ...]:
        part = ceil_div(n, micro_batches)
        _, activations, gradients = growth.stage(part)
        activations += growth.copies  # made by the first step
        images = batches * n + (part if micro_batches > 1 else 0)
        return used, activations, gradients, work(part), images * growth.image

    predicted = sum(parts(batch_size))
    if predicted <= limit_bytes:
        return
    fits, too_large = 0, batch_size
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        if sum(parts(middle)) <= limit_bytes:
            fits = middle
        else:
            too_large = middle
    weights = sum(parameter.data.nbytes for parameter in model.parameters())
    own = weights + sum(
        len(part.states) * sum(parameter.data.nbytes for parameter in part.parameters)
        for part in optimizer.parts
    )
    sizes = [readable_size(size) for size in parts(batch_size)]
    raise ArgumentError(
        f"a step on {batch_size} images would need about {readable_size(predicted)}, the limit is "
        f"{readable_size(limit_bytes)}\n"
        f"  in use {sizes[0]} ({readable_size(own)} of it model and {type(optimizer).__name__}), "
        f"activations {sizes[1]}, gradients {sizes[2]}, temporaries {sizes[3]}, images {sizes[4]}\n"
        + (
            f"  use a batch of at most {fits} images, or raise the limit"
            if fits
            else "  not even one image fits: raise the limit, or use a smaller model"
        )
    )


def _work(growth: Growth, batch_size: int, available: int) -> Callable[[int], int]:
    """A function that estimates the bytes of temporaries in a step on n images, in all threads.

    Scratch memory grows by the same amount for each image until operations split the batch into
    blocks, so two small batches tell it.  `available` bytes are enough for both.
    """
    image = growth.per_image
    n = min(batch_size, max(2, TRACED // _FEWER // image))
    while n and 2 * sum(growth.stage(n)[1:]) > available:
        n //= 2
    if n == 0:  # not even one image fits, whatever the temporaries
        return lambda n: 0
    temporary, scratch = growth.measure(n)
    before = growth.measure(n // 2)[1] if n > 1 else 0
    slope = (scratch - before) / (n - n // 2)
    full = max(n, TRACED // image)

    def work(images: int) -> int:
        of_a_thread = max(0.0, scratch + slope * (min(images, full) - n))
        return int(temporary * min(images / n, 1) + get_num_threads() * of_a_thread)

    return work
