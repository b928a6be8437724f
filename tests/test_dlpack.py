"""Memory shared with other libraries: NumPy, PyTorch and a fake CuPy."""

import operator
import sys
import types
from contextlib import nullcontext

import numpy as np
import pytest
from fake_cuda import device_class

import gpucnn
from gpucnn import cudasim
from gpucnn.errors import ArgumentError, DeviceError, DtypeError, GraphError

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)

keeps_permissions = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.1.0",
    reason="NumPy 2.0 imports DLPack memory as read-only and cannot export read-only memory",
)


class Speaker:
    """Another library's array with DLPack's two methods and nothing else."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


def same_memory(a, b):
    return a.__array_interface__["data"][0] == b.__array_interface__["data"][0]


# --- NumPy and other arrays on the CPU ---


@pytest.mark.parametrize("make", [gpucnn.from_dlpack, gpucnn.tensor])
@pytest.mark.parametrize("wrap", [lambda x: x, Speaker, gpucnn.tensor])
def test_an_array_on_the_cpu_is_imported_without_a_copy(make, wrap):
    x = VALUES.copy()
    t = make(wrap(x))
    x[1, 2] = -1
    assert t.numpy()[1, 2] == -1
    assert (t.shape, t.dtype, str(t.device)) == ((3, 4), np.float32, "cpu")


@pytest.mark.parametrize("kind", [1, 3, 11])
def test_pinned_memory_of_other_libraries_is_imported_on_the_cpu(kind):
    assert gpucnn.from_dlpack(Speaker(VALUES, (kind, 0))).shape == (3, 4)


def test_a_tensor_is_read_by_numpy_without_a_copy():
    t = gpucnn.tensor(VALUES.copy())
    assert same_memory(np.from_dlpack(t), t.data)
    assert same_memory(np.asarray(t), t.data)
    assert same_memory(t.numpy(), t.data)
    assert t.__dlpack_device__() == (1, 0)
    assert not hasattr(t, "__cuda_array_interface__")


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::2],
        lambda x: x.T,
        lambda x: x[::-1],
        lambda x: np.broadcast_to(x[0], (5, 4)),
    ],
    ids=["columns", "transposed", "backwards", "broadcast"],
)
def test_an_array_that_is_not_contiguous_keeps_its_memory_and_its_values(view):
    x = view(VALUES.copy())
    t = gpucnn.from_dlpack(x)
    assert same_memory(t.data, x)
    np.testing.assert_array_equal((t * 2).numpy(), x * 2)


@keeps_permissions
def test_read_only_memory_stays_read_only():
    x = VALUES.copy()
    x.flags.writeable = False
    t = gpucnn.from_dlpack(Speaker(x))
    assert same_memory(t.data, x)
    with pytest.raises(ValueError, match="read-only"):
        t.data[0] = 1
    assert (t + 1).numpy()[0, 1] == 2


@pytest.mark.parametrize("make", [gpucnn.from_dlpack, gpucnn.tensor])
def test_unsupported_dtypes_and_devices_are_refused_by_name(make):
    with pytest.raises(DtypeError, match="expected numbers, got dtype complex64"):
        make(Speaker(VALUES.astype(np.complex64)))
    for kind, name in ((10, "ROCm"), (8, "Metal"), (77, "DLPack device type 77")):
        with pytest.raises(DeviceError, match=f"is on {name}, and gpucnn has cpu and cuda"):
            make(Speaker(VALUES, (kind, 0)))


def test_an_object_without_dlpack_is_refused_with_tensor_as_the_way_out():
    for x in ([1.0, 2.0], 3, "text"):
        with pytest.raises(ArgumentError, match=r"__dlpack__.*\n.*tensor converts"):
            gpucnn.from_dlpack(x)


def test_an_array_that_cannot_be_exported_is_an_error_with_the_reason():
    class Sulky(Speaker):
        def __dlpack__(self, **options):
            raise BufferError("not today")

    with pytest.raises(DtypeError, match=r"Sulky of .* cannot be shared \(not today\)"):
        gpucnn.from_dlpack(Sulky(VALUES))


# --- PyTorch ---


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="the oracle is PyTorch")


@keeps_permissions
def test_a_torch_tensor_and_a_tensor_share_memory_in_both_directions(torch):
    theirs = torch.arange(6.0).reshape(2, 3)
    for make in (gpucnn.from_dlpack, gpucnn.tensor):
        mine = make(theirs)
        theirs[0, 1] += 10
        assert mine.numpy()[0, 1] == theirs[0, 1]
    back = torch.from_dlpack(mine)
    back[1, 2] = -3
    assert mine.numpy()[1, 2] == theirs[1, 2] == -3
    assert back.data_ptr() == theirs.data_ptr()


@keeps_permissions
@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "int8", "uint8", "bool"])
def test_dtypes_are_kept_in_both_directions(torch, dtype):
    theirs = torch.tensor([0, 1, 1]).to(getattr(torch, dtype))
    mine = gpucnn.from_dlpack(theirs)
    assert mine.dtype == dtype
    assert torch.from_dlpack(mine).dtype == theirs.dtype
    assert torch.equal(torch.from_dlpack(mine), theirs)


def test_a_strided_torch_tensor_keeps_its_strides(torch):
    theirs = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)
    mine = gpucnn.from_dlpack(theirs)
    assert mine.data.strides == tuple(4 * n for n in theirs.stride())
    np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    images = torch.rand(2, 3, 5, 5).to(memory_format=torch.channels_last)
    nhwc = gpucnn.from_dlpack(images.permute(0, 2, 3, 1))
    assert nhwc.data.flags.c_contiguous  # torch's channels_last is gpucnn's layout


def test_bfloat16_is_refused_even_if_ml_dtypes_registered_it_with_numpy(torch):
    pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")  # as onnx imports it
    assert np.dtype("bfloat16").itemsize == 2
    with pytest.raises(DtypeError, match=r"Tensor of torch.bfloat16 .*\n  convert it first"):
        gpucnn.from_dlpack(torch.ones(2, dtype=torch.bfloat16))


def test_torch_tensors_that_cannot_be_shared_say_why(torch):
    for make in (gpucnn.from_dlpack, gpucnn.tensor):
        with pytest.raises(DtypeError, match=r"Tensor of torch.bfloat16 .*\n  convert it first"):
            make(torch.ones(2, dtype=torch.bfloat16))
        with pytest.raises(GraphError, match=r"requires a gradient.*\n.*x.detach\(\)"):
            make(torch.ones(2, requires_grad=True))
        with pytest.raises(ArgumentError, match=r"cannot be shared .*\n.*dense"):
            make(torch.eye(3).to_sparse())
        with pytest.raises(DeviceError, match="has no memory to share"):
            make(torch.ones(2, device="meta"))


@keeps_permissions
def test_gradients_of_a_shared_tensor_stay_in_gpucnn(torch):
    theirs = torch.tensor([1.0, 2.0])
    mine = gpucnn.tensor(theirs, requires_grad=True)
    (mine * mine).sum().backward()
    assert mine.grad.tolist() == [2, 4]
    assert torch.from_dlpack(mine).requires_grad is False


# --- the simulated device, which exports its memory as the host's ---


def test_a_cudasim_array_is_exported_as_host_memory_and_not_as_a_cuda_pointer(torch):
    t = gpucnn.tensor(VALUES, device="cudasim")
    for x in (t, t.data):
        assert x.__dlpack_device__() == (1, 0)
        assert not hasattr(x, "__cuda_array_interface__")
    theirs = torch.from_dlpack(t)
    assert theirs.device.type == "cpu"
    theirs[2, 3] = -7
    assert t.data.get()[2, 3] == -7
    assert same_memory(np.from_dlpack(t), t.data._host)


def test_a_cudasim_array_survives_export_and_import():
    x = cudasim.asarray(VALUES)
    for make in (gpucnn.from_dlpack, gpucnn.tensor):
        assert make(x).data is x
        assert str(make(x).device) == "cudasim"


def test_an_export_waits_for_a_pending_copy():
    x = cudasim.empty(4, np.float32)
    source = np.frombuffer(cudasim.cuda.alloc_pinned_memory(16), np.float32, 4)
    source[...] = VALUES[1]
    stream = cudasim.cuda.Stream(non_blocking=True)
    stream.wait_event(cudasim.cuda.get_current_stream().record())
    x.set(source, stream=stream)
    np.testing.assert_array_equal(np.from_dlpack(gpucnn.tensor(x)), VALUES[1])


def test_an_array_on_a_device_becomes_a_numpy_array_only_by_a_copy():
    t = gpucnn.tensor(VALUES, device="cudasim")
    np.testing.assert_array_equal(np.asarray(t), VALUES)
    with pytest.raises(ValueError, match="on cudasim has no NumPy array without a copy"):
        t.__array__(copy=False)


# --- CuPy, as a fake that records calls ---


class FakeCupyArray:
    """The attributes of a cupy.ndarray that gpucnn reads."""

    def __init__(self, source, dtype="float32", device=0):
        self.source, self.dtype, self.shape = source, np.dtype(dtype), (2,)
        self.device = types.SimpleNamespace(id=device)
        self.__cuda_array_interface__ = {"typestr": "<f4", "shape": (2,), "data": (4096, False)}

    def copy(self):
        return FakeCupyArray(("copy of", self.source), self.dtype)

    def __dlpack_device__(self):
        return (2, self.device.id)

    def __dlpack__(self, **options):
        return ("capsule", options)


@pytest.fixture
def cupy(monkeypatch):
    """A fake CuPy with two GPUs; .current[-1] is its current device."""
    fake = types.SimpleNamespace(ndarray=FakeCupyArray, current=[0])

    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 2,
        getDevice=lambda: fake.current[-1],
        pointerGetAttributes=lambda address: types.SimpleNamespace(device=address % 2),
    )
    fake.cuda = types.SimpleNamespace(
        runtime=runtime,
        Device=device_class(fake.current),
        get_allocator=lambda: None,
        using_allocator=lambda allocate: nullcontext(),
    )
    fake.from_dlpack = lambda x: FakeCupyArray(("dlpack", x), device=fake.current[-1])
    fake.asarray = lambda x: FakeCupyArray(("asarray", x), device=fake.current[-1])
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


@pytest.mark.parametrize("make", [gpucnn.from_dlpack, gpucnn.tensor])
def test_cuda_memory_is_imported_by_cupy_on_its_own_device(cupy, make):
    theirs = Speaker(None, (2, 1))
    t = make(theirs)
    assert t.data.source == ("dlpack", theirs)
    assert str(t.device) == "cuda:1"
    assert make(t.data).data is t.data
    with pytest.raises(DeviceError, match="cuda:5 does not exist"):
        make(Speaker(None, (2, 5)))


def test_importing_cuda_memory_without_cupy_is_an_error_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match="needs CuPy"):
        gpucnn.from_dlpack(Speaker(None, (2, 0)))


class OnlyInterface:
    def __init__(self, **changes):
        interface = {"typestr": "<f4", "shape": (2,), "data": (4096, False), "version": 3}
        self.__cuda_array_interface__ = {**interface, **changes}


def test_an_object_with_only_the_cuda_array_interface_becomes_a_tensor(cupy):
    for address, device in ((4096, "cuda:0"), (4097, "cuda:1"), (0, "cuda:0")):
        x = OnlyInterface(data=(address, False))
        t = gpucnn.tensor(x)
        assert t.data.source == ("asarray", x)
        assert str(t.device) == device  # CuPy would copy from another device to the current one


def test_read_only_cuda_memory_is_copied(cupy):
    x = OnlyInterface(data=(4096, True))
    assert gpucnn.tensor(x).data.source == ("copy of", ("asarray", x))


def test_unsupported_cuda_array_interfaces_are_refused(cupy):
    with pytest.raises(DtypeError, match="got dtype complex64"):
        gpucnn.tensor(OnlyInterface(typestr="<c8"))
    with pytest.raises(ArgumentError, match="has a mask"):
        gpucnn.tensor(OnlyInterface(mask=VALUES))
    with pytest.raises(ArgumentError, match="is incomplete"):
        gpucnn.tensor(OnlyInterface(data=None))


def test_a_tensor_on_a_gpu_exports_cupys_interfaces(cupy):
    t = gpucnn.Tensor(FakeCupyArray("x", device=1))
    assert t.__dlpack_device__() == (2, 1)
    assert t.__cuda_array_interface__["data"] == (4096, False)
    assert t.__dlpack__(stream=7, max_version=(1, 0)) == (
        "capsule",
        {"stream": 7, "max_version": (1, 0)},
    )


def test_cupy_has_every_name_that_gpucnn_uses():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    only_in_cupy = """
        from_dlpack ndarray.__cuda_array_interface__ cuda.runtime.pointerGetAttributes
    """.split()
    names = """
        asarray get_default_memory_pool cuda.alloc_pinned_memory cuda.get_allocator
        cuda.using_allocator cuda.get_current_stream cuda.get_elapsed_time cuda.Event.record
        cuda.Event.done cuda.Event.synchronize cuda.Stream.wait_event cuda.Stream.record
        cuda.Stream.synchronize cuda.Device.synchronize cuda.MemoryPool.used_bytes
        cuda.MemoryPool.free_bytes cuda.MemoryPool.get_limit cuda.MemoryPool.free_all_blocks
        cuda.memory.OutOfMemoryError cuda.runtime.memGetInfo cuda.runtime.getDevice
        ndarray.__dlpack__ ndarray.__dlpack_device__ ndarray.set
    """.split()
    for name in names:
        assert operator.attrgetter(name)(cudasim)
    for name in names + only_in_cupy:
        assert operator.attrgetter(name)(cupy)
