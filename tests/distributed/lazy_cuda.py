"""A stand-in for CuPy on several GPUs that runs work as late as CUDA's order allows.

Work waits in its stream until the host waits for it; then only what it depends on runs before.  So
a missing wait between streams gives wrong numbers each time.  Touching freed memory fails.
"""

import contextlib
import ctypes
import sys
import threading
import weakref
from types import SimpleNamespace

import numpy as np

DEVICES = 4
_local = threading.local()
_blocks = []  # of all memory ever allocated


class _Block:
    def __init__(self, device, size):
        self.bytes = np.full(max(size, 1), 0xAB, np.uint8)
        self.size, self.device, self.freed = size, device, False
        self.address = self.bytes.ctypes.data
        _blocks.append(self)

    def free(self):
        self.freed = True


def _block_of(pointer):
    return next((b for b in _blocks if 0 <= pointer - b.address < b.size), None)


# --- streams ---


class Stream:
    """Work in order; `ran` of its items have run."""

    by_pointer = {}

    def __init__(self, non_blocking=False):
        self.items, self.ran, self.device = [], 0, current_device()
        self.ptr = id(self)
        self.graph = None  # of a capture: {stream: how many of its items the origin waits for}
        Stream.by_pointer[self.ptr] = self

    def __enter__(self):
        _streams().append(self)
        return self

    def __exit__(self, *exc):
        _streams().pop()

    def add(self, item):
        self.items.append(item)

    def run(self, end):
        """Run the items before `end`."""
        while self.ran < end:
            self.ran += 1
            self.items[self.ran - 1]()

    def record(self, event=None):
        event = event or Event()
        event.stream, event.position = self, len(self.items)
        return event

    def wait_event(self, event):
        stream, position = event.stream, event.position
        if stream.graph is not None and self.graph is None:
            self.graph = stream.graph
            self.graph[self] = 0
        elif self.graph is not None:
            assert stream.graph is self.graph, "a capture waits for an event outside of it"
            self.graph[stream] = position
        self.add(lambda: stream.run(position))

    def synchronize(self):
        assert self.graph is None, "the host waits for a stream that captures"
        self.run(len(self.items))

    def is_capturing(self):
        return self.graph is not None

    def begin_capture(self):
        self.graph = {}

    def end_capture(self):
        for stream, position in self.graph.items():
            assert stream is self or position == len(stream.items), "a stream is not joined"
            stream.graph = None
        self.graph = None


class Event:
    def __init__(self, disable_timing=False):
        self.stream = None

    @property
    def done(self):
        assert not get_current_stream().is_capturing(), "asked during a capture"
        return self.stream is None or self.stream.ran >= self.position


# --- the current device and stream of each thread ---


class Device:
    def __init__(self, index):
        self.id = index

    def __enter__(self):
        _devices().append(self.id)

    def __exit__(self, *exc):
        _devices().pop()

    def synchronize(self):
        for stream in list(Stream.by_pointer.values()):
            if stream.device == self.id:
                stream.synchronize()


def _devices():
    if not hasattr(_local, "devices"):
        _local.devices, _local.streams, _local.defaults = [0], [], {}
    return _local.devices


def _streams():
    _devices()
    return _local.streams


def current_device():
    return _devices()[-1]


def get_current_stream():
    device = current_device()
    for stream in reversed(_streams()):
        if stream.device == device:
            return stream
    if device not in _local.defaults:
        _local.defaults[device] = Stream()
    return _local.defaults[device]


# --- arrays ---


class ndarray:
    def __init__(self, shape, dtype, owner=None, host=None):
        self.shape, self.dtype = shape, np.dtype(dtype)
        if owner is None:
            size = int(np.prod(shape)) * self.dtype.itemsize
            owner = _Block(current_device(), size)
            # As in CuPy's pool: the stream's later work may get the memory.
            weakref.finalize(self, get_current_stream().add, owner.free).atexit = False
            host = owner.bytes[:size].view(self.dtype).reshape(shape)
        self._block, self._host = owner, host
        self.size, self.nbytes = host.size, host.nbytes
        self.flags = SimpleNamespace(c_contiguous=host.flags.c_contiguous)
        self.data = SimpleNamespace(ptr=host.ctypes.data if host.size else 0)
        self.device = Device(owner.device)

    def _enqueue(self, function):
        assert self._block.device == current_device(), "the array is on another device"
        block, host = self._block, self._host

        def item():
            assert not block.freed, "freed memory is used"
            function(host)

        get_current_stream().add(item)

    def __getitem__(self, index):
        part = ndarray.__new__(ndarray)
        ndarray.__init__(part, self._host[index].shape, self.dtype, self._block, self._host[index])
        part._base = self  # keeps the memory
        return part

    def set(self, host):
        host = np.array(host)
        self._enqueue(lambda mine: np.copyto(mine, host))

    def get(self):
        get_current_stream().synchronize()
        return self._host.copy()

    def __iadd__(self, number):
        self._enqueue(lambda mine: np.add(mine, number, out=mine))
        return self

    def __imul__(self, number):
        self._enqueue(lambda mine: np.multiply(mine, number, out=mine))
        return self


def asarray(host):
    host = np.asarray(host)
    x = ndarray(host.shape, host.dtype)
    x.set(host)
    return x


# --- cupy.cuda.runtime: what fake_nccl.py calls ---


def _memcpy_async(target, source, size, kind, stream):
    block = _block_of(target) or _block_of(source)

    def item():
        assert not block.freed, "freed memory is used"
        ctypes.memmove(target, source, size)

    Stream.by_pointer[stream].add(item)


def _attributes(pointer):
    block = _block_of(pointer)
    return SimpleNamespace(type=0 if block is None else 2, device=block.device if block else -2)


def modules(monkeypatch, nccl):
    """Make `import cupy` import this module, with this cupy.cuda.nccl."""
    runtime = SimpleNamespace(
        getDeviceCount=lambda: DEVICES,
        getDevice=current_device,
        deviceGetPCIBusId=lambda index: f"0000:0{index + 1}:00.0",
        runtimeGetVersion=lambda: 13000,
        pointerGetAttributes=_attributes,
        streamSynchronize=lambda pointer: Stream.by_pointer[pointer].synchronize(),
        streamIsCapturing=lambda pointer: Stream.by_pointer[pointer].is_capturing(),
        memcpyAsync=_memcpy_async,
    )
    cuda = SimpleNamespace(
        Device=Device,
        Stream=Stream,
        Event=Event,
        get_current_stream=get_current_stream,
        get_allocator=lambda: None,
        using_allocator=lambda allocator: contextlib.nullcontext(),
        alloc_pinned_memory=lambda size: np.zeros(size, np.uint8),
        runtime=runtime,
        nccl=nccl,
    )
    cupy = SimpleNamespace(ndarray=ndarray, asarray=asarray, cuda=cuda)
    for name, module in (("cupy", cupy), ("cupy.cuda", cuda), ("cupy.cuda.nccl", nccl)):
        monkeypatch.setitem(sys.modules, name, module)
    return cupy
