"""Capture the work of one step as a CUDA graph, and repeat it with one launch.

    step = Graph(device, value_bytes=4096)
    with step.capturing():
        work()                  # recorded, not done
    step.replay()               # sends the step's values, then one launch

Read step_values.py first.  While a stream captures, CuPy refuses what would wait for the device or
read host memory.  The graph keeps addresses only, so `Graph` keeps what they point to:

    inside the capture      a memory pool of its own, which nobody else uses afterwards
    from before             every array that a launch or an operation used: `keep`
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gpucnn.cuda.counters import counters, forget
from gpucnn.cuda.launcher import Launch, may_launch_graph, only_watched
from gpucnn.cuda.step_values import StepValues
from gpucnn.device import Array, Device, working_on


class Graph:
    """The work of one step on `device`, of which `value_bytes` may change from step to step."""

    def __init__(self, device: Device, value_bytes: int) -> None:
        self.device = device
        self._cuda = device.xp.cuda
        self._pool = self._cuda.MemoryPool()
        self._own: set[int] = set()  # addresses that the pool has given out
        self._kept: dict[int, Array] = {}  # by address: arrays from before the capture
        self._graph: Any = None
        self._stream: Any = None
        with working_on(device):
            self.values = StepValues(device, value_bytes)

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Record the work of the block; call it once.

        Whatever the block raises ends the capture and is raised again.  Raises CuPy's errors for
        work that cannot be captured.
        """
        with working_on(self.device):
            size = counters(self.device, 1).size
            # Kept as long as the graph: counters are found by the stream's address.
            self._stream = stream = self._cuda.Stream(non_blocking=True)
            with stream:
                counters(self.device, size)
                ready = stream.record()
            weakref.finalize(self, forget, self.device, int(stream.ptr)).atexit = False
            self._cuda.get_current_stream().wait_event(ready)  # replays read them there
            with (
                stream,
                self._cuda.using_allocator(self._allocate),
                self.values.collecting(),
                only_watched(self._note),
            ):
                stream.begin_capture()
                try:
                    yield
                except BaseException:
                    with suppress(self._cuda.runtime.CUDARuntimeError):  # it may be invalid
                        stream.end_capture()
                    raise
                self._graph = stream.end_capture()
                self._graph.upload()  # what it still needs is allocated now, not in a step
        self._own.clear()

    def _allocate(self, size: int) -> Any:
        memory = self._pool.malloc(size)
        self._own.add(memory.ptr if hasattr(memory, "ptr") else memory.ctypes.data)
        return memory

    def _note(self, launch: Launch) -> bool:
        for value in launch.values:
            if isinstance(value, self.device.xp.ndarray):
                self.keep(value)
        return True

    def keep(self, array: Array) -> None:
        """Keep an array alive, unless it was allocated in this capture."""
        while array.base is not None:
            array = array.base
        address = array.data.ptr
        if address not in self._own:
            self._kept[address] = array

    def replay(self) -> None:
        """Send the values of this step and do the work, on the current stream."""
        if not may_launch_graph():
            return
        self.values.send()
        self._graph.launch()
