"""The loss scale of training in float16, which adapts without waiting for the GPU.

float16 has no numbers below 6e-8, and most gradients of activations are smaller.  The gradient of
`scale * loss` is `scale` times as large, and the optimizer divides it again.

    backward          gradients of scale * loss
    check_gradients   all finite?  scale, state (device)         1 launch for 16 parameters
    sgd_step          p -= lr * gradient / scale, or nothing     1 launch for 16 parameters
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpucnn import cuda, schema
from gpucnn.device import Array, Device, array_module, device_of, to_device, to_host, working_on
from gpucnn.errors import ArgumentError, CheckpointError, DeviceMismatch, GraphError, ShapeError
from gpucnn.integers import is_int
from gpucnn.optim.optimizer import Optimizer
from gpucnn.tensor import Tensor

LEAST = 2.0**-14  # of the scale: an overflow at this scale is one of the gradients themselves
_MOST = float(np.finfo(np.float32).max)
_THREADS = 256  # per block

_STATE = schema.record(
    {
        "scale": schema.number(LEAST, _MOST),
        "good_steps": schema.integer(0, 2**31 - 1),
        "skipped": schema.integer(0, 2**31 - 1),
    }
)


class GradScaler:
    """Scales the loss for float16, and leaves out steps whose gradients overflow.

        scaler = optim.GradScaler(device="cuda")
        with gpucnn.autocast("float16"):
            loss = ops.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)

    A step whose gradients are not all finite changes neither parameters nor the optimizer's state;
    the scale is multiplied by backoff_factor, but stays at least 2**-14.  After growth_interval
    good steps in a row it is multiplied by growth_factor.  All of that is decided on the device:
    the host never waits.  Names and rule are torch.amp.GradScaler's, except that `step` also does
    what PyTorch's `update` does: several optimizers need a scaler each, or a MultiOptimizer.

    device is that of the model.  With enabled=False, scale() and step() do nothing of their own.

    Raises ArgumentError for an argument out of range, DeviceError for a device that cannot be used.
    Source: Micikevicius et al. 2018, section 3.2.
    """

    def __init__(
        self,
        device: str | Device | None = None,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        if not LEAST <= init_scale <= _MOST:
            raise ArgumentError(
                f"GradScaler: init_scale must be between 2**-14 and {_MOST:.2g}, got {init_scale}"
            )
        if not 1 < growth_factor < math.inf or not 0 < backoff_factor < 1:
            raise ArgumentError(
                "GradScaler: growth_factor must be above 1 and backoff_factor between 0 and 1, "
                f"got {growth_factor} and {backoff_factor}"
            )
        if not is_int(growth_interval) or growth_interval < 1:
            raise ArgumentError(
                f"GradScaler: growth_interval must be a positive integer, got {growth_interval}"
            )
        self.enabled = enabled
        self._device = Device.parse(device)
        self._growth, self._backoff = float(growth_factor), float(backoff_factor)
        self._interval = int(growth_interval)
        self._checked: Optimizer | None = None  # whose gradients unscale_ has divided
        self._adapted: Optimizer | None = None  # whose step adapted the scale, until it is used
        # See check_gradients in kernels/optimizer.cu
        with working_on(self._device):
            self._scale = to_device(np.array([init_scale, 1, 1], np.float32), self._device)
            self._state = to_device(np.zeros(4, np.int32), self._device)

    def scale(self, loss: Tensor) -> Tensor:
        """loss * scale, a scalar of loss's dtype."""
        return loss * Tensor(self._start(loss)) if self.enabled else loss

    def backward(self, loss: Tensor) -> None:
        """scale(loss).backward(), without a multiplication: the scale is where backward starts."""
        loss.backward(self._start(loss) if self.enabled else None)

    def _start(self, loss: Tensor) -> Array:
        self._adapted = None
        if loss.size != 1:
            raise ShapeError(f"GradScaler: expected a loss with one element, got {loss.shape}")
        if loss.device != self._device:
            raise DeviceMismatch(
                f"GradScaler: the loss is on {loss.device}, the scale on {self._device}\n"
                f"  build the scaler with device={str(loss.device)!r}"
            )
        with working_on(self._device):
            return self._factor(0).astype(loss.dtype, copy=False).reshape(loss.shape)

    def _factor(self, i: int) -> Array:
        """An entry of self._scale as a view ()."""
        return self._scale[i : i + 1].reshape(())

    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients by the scale, in place: to clip or look at them before `step`.

        If one is not finite, all become 0 or NaN, and `step` leaves the step out.
        """
        if not self.enabled:
            return
        inner = self._check(optimizer)
        with working_on(self._device), np.errstate(invalid="ignore"):  # infinity * 0
            for parameter in inner.parameters:
                if parameter.grad is not None:
                    parameter.grad *= self._factor(1).astype(parameter.dtype, copy=False)
        self._checked = inner

    def step(self, optimizer: Any) -> None:
        """optimizer.step() with gradients divided by the scale, unless one is not finite.

        optimizer is an Optimizer, or a DistributedOptimizer, whose gradients are reduced first.
        Then the scale is adapted.  Optimizer.steps counts a step that is left out; the bias
        correction of Adam does not.  Raises what optimizer.step() does, and GraphError if another
        optimizer's step has adapted the scale since a loss was scaled.
        """
        if not self.enabled:
            optimizer.step()
            return
        inner: Optimizer = getattr(optimizer, "optimizer", optimizer)
        divided = self._checked is inner
        if not divided:
            self._check(optimizer)
        self._checked = None
        factor = self._factor(2 if divided else 1)
        inner.unscale = factor if inner._by_kernel else float(to_host(factor))
        try:
            optimizer.step()
        finally:
            inner.unscale = None

    def get_scale(self) -> float:
        """The scale of the next backward pass.  The host waits for a GPU."""
        self._adapted = None
        return float(to_host(self._scale)[0]) if self.enabled else 1.0

    @property
    def skipped(self) -> int:
        """Steps left out so far.  The host waits for a GPU."""
        return int(to_host(self._state)[1])

    def overflowed(self) -> bool:
        """Whether the latest step was left out.  The host waits for a GPU."""
        return bool(to_host(self._scale)[2] == 0)

    # --- the check ---

    def _check(self, optimizer: Any) -> Optimizer:
        """Look for gradients that are not finite, and adapt the scale; the wrapped optimizer."""
        inner: Optimizer = getattr(optimizer, "optimizer", optimizer)
        if self._adapted is not None and self._adapted is not inner:
            raise GraphError(
                "GradScaler: another optimizer's step has adapted the scale since the loss was "
                "scaled\n  build a scaler for each optimizer"
            )
        if inner is not optimizer:
            optimizer.reduce()
        device = device_of(inner._flat)
        if device != self._device:
            raise DeviceMismatch(
                f"GradScaler: the parameters are on {device}, the scale on {self._device}\n"
                f"  build the scaler with device={str(device)!r}"
            )
        with working_on(self._device):
            if inner._by_kernel:
                self._check_by_kernel(inner)
            else:
                self._check_on_host(inner)
        self._adapted = inner
        return inner

    def _check_by_kernel(self, optimizer: Optimizer) -> None:
        launches = [(part, *launch[1:]) for part in optimizer.parts for launch in part._launches]
        blocks = sum(grid[0] * grid[1] for _, _, grid in launches)
        for part, first, grid in launches:
            cuda.launch(
                "check_gradients",
                grid,
                _THREADS,
                self._scale,  # (3,)
                self._state,  # (4,)
                part._tables()[1],  # sizes
                first,
                *part._gradients(first, grid[1]),
                blocks,
                self._growth,
                self._backoff,
                self._interval,
                LEAST,
                optimizer.guard,
            )

    def _check_on_host(self, optimizer: Optimizer) -> None:
        """The rule of check_gradients."""
        gradients = [p.grad for p in optimizer.parameters if p.grad is not None]
        finite = [bool(array_module(g).isfinite(g).all()) for g in gradients]
        scale, state = to_host(self._scale).copy(), to_host(self._state).copy()
        now = scale[0]
        scale[1:] = (1 / now, 1) if all(finite) else (0, 0)
        if not all(finite):
            scale[0] = max(now * np.float32(self._backoff), np.float32(LEAST))
            state[0], state[1] = 0, state[1] + 1
        else:
            state[0] += 1
            if state[0] >= self._interval:
                state[0] = 0
                with np.errstate(over="ignore"):
                    grown = now * np.float32(self._growth)
                scale[0] = grown if np.isfinite(grown) else now
        self._scale[...], self._state[...] = (to_device(x, self._device) for x in (scale, state))

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """{"scale": float, "good_steps": int, "skipped": int}: plain JSON data."""
        return {
            "scale": float(to_host(self._scale)[0]),
            "good_steps": int(to_host(self._state)[0]),
            "skipped": int(to_host(self._state)[1]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.  Raises CheckpointError for anything but a state_dict()."""
        try:
            _STATE(state, "")
        except CheckpointError as error:
            raise CheckpointError(f"GradScaler: the state does not fit: {error}") from None
        scale = np.array([state["scale"], 1, 1], np.float32)
        counts = np.array([state["good_steps"], state["skipped"], 0, 0], np.int32)
        with working_on(self._device):
            self._scale[...] = to_device(scale, self._device)
            self._state[...] = to_device(counts, self._device)
