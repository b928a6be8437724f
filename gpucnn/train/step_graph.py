"""Training steps as a CUDA graph: Python runs three steps, and one launch repeats them.

    step 1, 2     eager; step 2 is traced
    step 3        captured, then replayed
    step 4, ...   replayed: one copy of what changes, one launch

Reading order: cuda/step_values.py, cuda/graph.py, dependencies.py, captured_step.py, this file.
Bits, metrics, random numbers and checkpoints are those of eager steps.  A step that cannot be
captured, a batch of another size, and two steps after a change of what the graph depends on run
eagerly.  With several ranks a replay is two launches, and all ranks run eagerly while one of them
has a reason to.
"""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from gpucnn import nn, optim
from gpucnn.arguments import report
from gpucnn.device import Device, spares
from gpucnn.tensor import Tensor
from gpucnn.train.captured_step import CapturedStep, Key, Run, Work
from gpucnn.train.dependencies import Trace
from gpucnn.watching import watching

_OPTIMIZERS = (optim.SGD, optim.Adam, optim.AdamW, optim.Muon)  # whose kernels read their rates
_MOST_CHANGES = 3  # captures in a row that a change has made useless after a few steps
_FEW = 4  # steps


class StepGraph:
    """Captures and replays the steps of a Trainer.

    wanted   True: capture whatever can be captured; None: on a CUDA device, if all code of model
             and loss is gpucnn's, whose steps are known to be alike; False: never
    reason   why steps run eagerly on this rank; "" if they are replayed, or will be
    """

    def __init__(self, run: Any, guard: Any, wanted: bool | None) -> None:
        self._run: Run = run  # weak references: a cycle would keep a deleted Trainer's memory
        self._guard: Work = guard
        self._wanted = wanted
        self._said: set[str] = set()
        self._seen: Counter[Key] = Counter()  # eager steps by the batch's shapes
        self._traces: dict[Key, Trace] = {}  # of the latest eager steps
        self._tracing: Key | None = None
        self._captured: CapturedStep | None = None
        self._changes = 0
        self._others: Counter[Key] = Counter()  # batches in a row that the graph does not take
        self._off = False  # for good
        self._wait = self._waited = 0  # eager steps before the next attempt
        self.reason = "" if wanted is not False else "graph=False"

    def step(self, images: Tensor, labels: Tensor) -> bool:
        """Replay the step with this batch; False: it must run eagerly, inside `tracing`."""
        self._tracing = None
        device = images.device
        if self._off or self._wanted is False or (not self._wanted and device.kind != "cuda"):
            return False
        ranks = self._run.ranks
        if ranks.place is not None and ranks.place.count == 0:
            return False  # a filler image
        if ranks.elsewhere and not self.reason:
            self._captured = None
            self._note(ranks.elsewhere)
            return False
        key = (images.shape, images.dtype, labels.shape, labels.dtype, device, ranks.place)
        captured = self._captured
        if captured is None:
            return self._try(key, images, labels)
        if not captured.takes(key, images, labels):
            return self._try_another(key, images, labels)
        self._others.clear()
        changed = captured.changed(self._run, self._guard)
        if changed:
            self._drop(captured, changed)
            return self._try(key, images, labels)
        self._replay(captured, images, labels)
        return True

    def _replay(self, captured: CapturedStep, images: Tensor, labels: Tensor) -> None:
        try:
            captured.replay(self._run, self._guard, images, labels)
        except BaseException:  # what the graph left behind is unknown
            self._captured = None
            raise

    def tracing(self) -> AbstractContextManager[None]:
        """Around an eager step: notes what it does, if the next one may be captured."""
        if self._tracing is None:
            return nullcontext()
        trace = self._traces[self._tracing] = Trace()
        return watching(trace)

    def refuse(self, reason: str, device: Device) -> None:
        """Say why steps on `device` run eagerly, if they were to be captured."""
        if self._wanted or (self._wanted is None and device.kind == "cuda"):
            self._say(reason)

    def give_up(self, device: Device) -> bool:
        """Free the graph's memory: see gpucnn.device.Spare."""
        if self._captured is None or self._captured.graph.device != device:
            return False
        self._captured = None
        self._stop(f"{device} has no memory left for it")
        return True

    # --- capture ---

    def _try_another(self, key: Key, images: Tensor, labels: Tensor) -> bool:
        """Step with a batch that the graph does not take; after a few of them, forget the graph."""
        self._others[key] += 1
        if self._others[key] < _FEW or images.requires_grad:
            return False
        self._captured = None
        self._others.clear()
        self._traces.clear()
        return self._try(key, images, labels)

    def _try(self, key: Key, images: Tensor, labels: Tensor) -> bool:
        """Capture the step if it is time for that, and replay it."""
        self._seen[key] += 1
        if self._seen[key] < 2 or self._waited < self._wait:
            self._waited += self._seen[key] >= 2
            return False
        if reason := self._unfit(images):
            self._say(reason)
            self._wait, self._waited = max(2 * self._wait, 8), 0  # it may be fit some day
            return False
        trace = self._traces.pop(key, None)
        if trace is None:
            self._tracing = key
            return False
        try:
            captured = CapturedStep(key, self._run, images, labels)
            reason, final = captured.capture(self._run, self._guard, trace)
        except MemoryError:
            self._stop(f"{images.device} has no memory left for it")
            return False
        if reason and not final and self._changes < _MOST_CHANGES - 1:
            self._changes += 1  # perhaps something has changed once
            self._tracing = key
            return False
        if reason:
            self._stop(reason)
            return False
        self.reason = ""
        self._captured = captured
        spares.add(self)
        self._replay(captured, images, labels)
        return True

    def _unfit(self, images: Tensor) -> str:
        """Why a step cannot be captured, as far as it is known before; "" if nothing is."""
        run = self._run
        optimizer = run.optimizer
        if reason := run.ranks.unfit():
            return reason
        for part in optimizer.parts:
            if type(part) not in _OPTIMIZERS:
                return f"{type(part).__name__} is not one of gpucnn's optimizers"
        if not optimizer._by_kernel:
            return f"the optimizer's kernels do not take {optimizer.parameters[0].dtype}"
        for name, module in run.model.named_modules():
            if module._is_watched():
                return f"a hook of module {name or 'outermost'} runs in every step"
            if self._wanted is None and not _is_ours(module):
                return (
                    f"module {name or 'outermost'}, a {type(module).__name__}, has Python code of "
                    "its own, which a replay does not run\n  graph=True captures it if every step "
                    "does the same"
                )
        if images.requires_grad:
            return "the images require a gradient"
        own = set(map(id, optimizer.parameters))
        for name, parameter in run.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in own:
                return f"the optimizer does not have parameter {name}, whose gradients add up"
        hooks = (hook for p in optimizer.parameters for hook in (p._hooks or {}).values())
        if not all(map(run.ranks.owns, hooks)):
            return "a hook of a parameter runs in every step"
        if self._wanted is None and not _is_ours(run.loss):
            return (
                "the loss has Python code of its own, which a replay does not run\n  "
                "graph=True captures it if every step does the same"
            )
        return ""

    def _drop(self, captured: CapturedStep, changed: str) -> None:
        self._captured = None
        self._traces.clear()
        self._changes = self._changes + 1 if captured.replays < _FEW else 0
        if self._changes >= _MOST_CHANGES:
            self._stop(f"it depends on what changes again and again: {changed}")

    def _stop(self, reason: str) -> None:
        self._off = True
        self._say(reason)

    def _say(self, reason: str) -> None:
        self.reason = reason
        self._note(reason)

    def _note(self, reason: str) -> None:
        if reason not in self._said and self._run.ranks.rank == 0:
            self._said.add(reason)
            report(f"note: training steps run without a CUDA graph: {reason}")


def _is_ours(code: Any) -> bool:
    """Whether all Python code of a module or function is gpucnn's."""
    if isinstance(code, nn.Module):
        return "forward" not in vars(code) and type(code).__module__.startswith("gpucnn.")
    return str(getattr(code, "__module__", "")).startswith("gpucnn.")
