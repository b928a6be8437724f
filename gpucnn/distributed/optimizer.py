"""Data parallelism: an optimizer whose gradients are the mean over all ranks.

    flat buffer   |  bucket 0  |  bucket 1  |  bucket 2  |
    parameters    | p8  p7 p6  |   p5  p4   | p3 p2 p1 p0|
    time          ------ backward --------------------------> reduce() -> step
                               reduce 0 ...
                                            reduce 1 ...

Backward finishes the newest layers first, so their bucket is reduced while it computes the rest.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from gpucnn.device import Array, array_module, working_on
from gpucnn.distributed.communicator import Communicator, Work, check_communicator
from gpucnn.distributed.wire import WIRE_DTYPES, pack, unpack
from gpucnn.errors import ArgumentError, GraphError, kind
from gpucnn.integers import ceil_div, is_int
from gpucnn.optim import Optimizer
from gpucnn.out_of_memory import explaining
from gpucnn.tensor import Tensor

_ALIGN = 16  # elements: each gradient starts on a 64-byte line, as its parameter does


class DistributedOptimizer:
    """`optimizer` for one of the ranks of `comm`, each of which trains on a part of every batch.

        optimizer = distributed.DistributedOptimizer(optim.SGD(model.parameters(), lr=0.1), comm)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    optimizer     the wrapped one, with the same parameters, in the same order, on all ranks; a
                  scheduler takes it
    bucket_bytes  gradients are reduced in pieces of about this size
    grad_dtype    the format in which they are sent and added: "fp32", "fp16" or "bf16"; None: the
                  parameters' own

    Each rank's loss is the mean over its part, and the parts have one size: then the mean of their
    gradients is that of the whole batch.  Parameters must be equal on all ranks at the start.

    Gradients are slices of one flat buffer, laid out in the reverse order of the parameters.
    backward() divides each by the number of ranks, and begins to reduce a bucket once all of its
    gradients are complete.  The ranks add in a fixed order: a run repeats bit for bit.  A gradient
    that overflows fp16 becomes infinite, on all ranks: a Trainer then does what its on_nan says.

    A parameter without a gradient, such as a frozen one or one that this step does not use, keeps
    grad None.  The ranks must agree on which these are.

    Raises ArgumentError for any other optimizer, communicator, size or format.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        comm: Communicator,
        *,
        bucket_bytes: int = 25_000_000,
        grad_dtype: str | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(
                f"DistributedOptimizer: expected an Optimizer, got {kind(optimizer)}"
            )
        check_communicator("DistributedOptimizer", comm)
        if not is_int(bucket_bytes) or bucket_bytes < 1:
            raise ArgumentError(
                f"DistributedOptimizer: bucket_bytes must be a positive integer, got {bucket_bytes}"
            )
        if grad_dtype is not None and grad_dtype not in WIRE_DTYPES:
            raise ArgumentError(
                f"DistributedOptimizer: expected grad_dtype {', '.join(WIRE_DTYPES)} or None, "
                f"got {grad_dtype!r}"
            )
        self.optimizer, self.comm = optimizer, comm
        self._device = optimizer.parameters[0].device
        with explaining("the gradients of DistributedOptimizer"), working_on(self._device):
            self._buckets = _buckets(optimizer.parameters, int(bucket_bytes), grad_dtype)
        self._bucket_of = {i: b for b, bucket in enumerate(self._buckets) for i in bucket.views}
        self._sync = True
        self._forget()
        hooks = ExitStack()
        for i, parameter in enumerate(optimizer.parameters):
            hooks.enter_context(parameter.register_post_accumulate_grad_hook(_Hook(self, i)))
        weakref.finalize(self, hooks.close).atexit = False

    # --- the wrapped optimizer ---

    @property
    def parameters(self) -> list[Tensor]:
        return self.optimizer.parameters

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def lr(self) -> float:
        """The first group's learning rate; setting it sets every group's."""
        return self.optimizer.lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self.optimizer.lr = lr

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's: the same on all ranks, and in a run of one process."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state)

    # --- a step ---

    def zero_grad(self) -> None:
        """Set every parameter's grad to None; a reduction that has begun is waited for."""
        with working_on(self._device):
            for bucket in self._buckets:
                bucket.finish()
        self._forget()
        self.optimizer.zero_grad()

    def no_sync(self) -> AbstractContextManager[None]:
        """Let backward passes inside the block add to `.grad` on this rank, and reduce nothing.

        For a step of several backward passes: run all of them but the last inside.  Also for a
        pass on one rank alone, such as a diagnosis; call zero_grad() before it.
        """
        return self._syncing(False)

    @contextmanager
    def _syncing(self, sync: bool) -> Iterator[None]:
        """Inside the block, backward passes reduce gradients if `sync`."""
        outer, self._sync = self._sync, sync
        try:
            yield
        finally:
            self._sync = outer

    def reduce(self) -> None:
        """Replace every gradient by its mean over the ranks; step() does so too.

        Calling it again before the next step() or zero_grad() changes nothing, so gradients may be
        clipped in between.

        Raises GraphError, ShapeError, DtypeError or DeviceMismatch for a parameter or gradient that
        the wrapped optimizer would refuse.
        """
        with working_on(self._device):
            self._expect()
            self._take_all()
            while self._next < len(self._buckets):
                self._begin_next()
            for bucket in self._buckets:
                bucket.finish()

    def step(self) -> None:
        """reduce(), then the wrapped optimizer's step()."""
        self.reduce()
        self.optimizer.step()
        self._forget()

    # --- a reduction ---

    def _forget(self) -> None:
        """Be ready for the gradients of another step."""
        self._taken: set[int] = set()  # parameters whose gradient is in the flat buffer
        self._next = 0  # the first bucket whose reduction has not begun
        self._expecting = False

    def _expect(self) -> None:
        """Count, once a step, the gradients that each bucket waits for."""
        if self._expecting:
            return
        self._expecting = True
        for bucket in self._buckets:
            parameters = [self.parameters[i] for i in bucket.views]
            bucket.left = sum(p.requires_grad or p.grad is not None for p in parameters)
            bucket.frozen = not bucket.left

    def _complete(self, i: int) -> None:
        """The hook: backward has added all to parameter i's gradient."""
        if not self._sync:
            self._refuse_late(i)
            return
        self._expect()
        self._take(i)
        self._buckets[self._bucket_of[i]].left -= 1
        # In one order on all ranks, whatever order their gradients come in
        while self._next < len(self._buckets) and not self._buckets[self._next].left:
            self._begin_next()
        for bucket in self._buckets[: self._next]:
            bucket.progress()

    def _take(self, i: int) -> None:
        """Move parameter i's share of the mean to the flat buffer."""
        self._refuse_late(i)
        self.optimizer._check_own(i)
        parameter, view = self.parameters[i], self._buckets[self._bucket_of[i]].views[i]
        array_module(view).divide(parameter.grad, self.comm.size, out=view)
        parameter.grad = view
        self._taken.add(i)

    def _take_all(self) -> None:
        """Move the gradients that are not in the flat buffer yet."""
        for i, parameter in enumerate(self.parameters):
            if i not in self._taken and parameter.grad is not None:
                self._take(i)

    def _reduce_taken(self) -> None:
        """Reduce gradients that a graph has moved to the flat buffer."""
        self._taken = {i for i, p in enumerate(self.parameters) if p.grad is not None}
        self.reduce()
        self._forget()

    def _refuse_late(self, i: int) -> None:
        if i in self._taken or self._bucket_of[i] < self._next:
            raise GraphError(
                f"DistributedOptimizer: parameter {i} gets a gradient after its reduction has begun"
                "\n  call step() or zero_grad() between two backward passes; to add gradients up, "
                "run all passes but the last inside `with optimizer.no_sync():`"
            )

    def _begin_next(self) -> None:
        bucket = self._buckets[self._next]
        self._next += 1
        if bucket.frozen:
            return
        for i in bucket.views.keys() - self._taken:
            bucket.views[i][...] = 0
        bucket.begin(self.comm)


class _Hook:
    """Tells the optimizer, as long as it exists, that parameter i's gradient is complete."""

    def __init__(self, optimizer: DistributedOptimizer, i: int) -> None:
        self._optimizer, self._i = weakref.ref(optimizer), i

    def __call__(self, parameter: Tensor) -> None:
        optimizer = self._optimizer()
        if optimizer is not None:
            optimizer._complete(self._i)


def is_quiet(hook: Any) -> bool:
    """Whether a parameter's hook is a DistributedOptimizer's that begins no reduction now."""
    if not isinstance(hook, _Hook):
        return False
    optimizer = hook._optimizer()
    return optimizer is None or not optimizer._sync


class _Bucket:
    """A slice of the flat buffer, reduced at once."""

    def __init__(self, flat: Array, views: dict[int, Array], wire: str | None) -> None:
        self.views = views  # by parameter
        self.left = 0  # gradients that are still to come
        self.frozen = False  # no parameter is trained: nothing is sent
        self._work: Work | None = None
        self._flat = self._sent = flat
        self._wire = wire if wire is not None and flat.dtype != WIRE_DTYPES[wire] else None
        if self._wire is not None:
            self._sent = array_module(flat).empty(flat.shape, WIRE_DTYPES[self._wire])

    def begin(self, comm: Communicator) -> None:
        if self._wire is not None:
            pack(self._flat, self._wire, self._sent)
        self._work = comm.start_allreduce(self._sent, "bf16" if self._wire == "bf16" else None)

    def progress(self) -> None:
        if self._work is not None:
            self._work.test()

    def finish(self) -> None:
        if self._work is None:
            return
        self._work.wait()
        self._work = None
        if self._wire is not None:
            unpack(self._sent, self._wire, self._flat)


def _buckets(parameters: list[Tensor], bucket_bytes: int, wire: str | None) -> list[_Bucket]:
    """Buckets of consecutive parameters, the last parameter first, in one flat buffer."""
    dtype = parameters[0].dtype
    sizes = [ceil_div(parameter.size, _ALIGN) * _ALIGN for parameter in parameters]
    parts: list[list[int]] = [[]]  # numbers of parameters
    for i in reversed(range(len(parameters))):
        filled = sum(sizes[j] for j in parts[-1])
        if filled and (filled + sizes[i]) * dtype.itemsize > bucket_bytes:
            parts.append([])
        parts[-1].append(i)
    flat = parameters[0].device.xp.zeros(sum(sizes), dtype)
    buckets, start = [], 0
    for part in parts:
        first, views = start, {}
        for i in part:
            views[i] = flat[start : start + parameters[i].size].reshape(parameters[i].shape)
            start += sizes[i]
        buckets.append(_Bucket(flat[first:start], views, wire))
    return buckets
