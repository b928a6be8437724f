"""cuda.launch: arguments cast and passed, launches counted and recorded, the device found."""

import dataclasses
import types

import numpy as np
import pytest
from fake_cuda import device_class

from gpucnn import cuda, cudasim
from gpucnn.cuda import launcher
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, DeviceError, DtypeError
from gpucnn.ops.geometry import Geometry
from gpucnn.precision import bfloat16


def test_python_numbers_become_the_c_type(xp):
    x = xp.asarray(np.arange(100, dtype=np.float32))
    y = xp.empty(100, np.float32)
    cuda.launch("scale", 4, 32, x, y, 0.5, 100)
    np.testing.assert_array_equal(y.get(), np.arange(100) / 2)
    cuda.launch("scale", (4, 1), (32,), x, y, np.float64(2), np.int64(100))
    np.testing.assert_array_equal(y.get(), np.arange(100) * 2)
    out = xp.empty(4, np.uint8)
    cuda.launch("bounded", 1, 4, out, xp.empty(1, np.int64), 2**63 + (7 << 32))
    assert out.get().tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize("size", [0, 1, 256, 257, 1000])
def test_launch_elementwise_starts_a_thread_for_each_element_in_as_few_blocks_as_that_takes(
    xp, size
):
    x = xp.ones(1024, np.float32)
    y = xp.zeros(1024, np.float32)
    with cuda.record_launches() as launches:
        cuda.launch_elementwise("scale", size, x, y, 3.0, 1024)  # the kernel's guard is wider
    (launch,) = launches
    assert (launch.grid, launch.block) == ((-(-size // 256), 1, 1), (256, 1, 1))
    started = launch.grid[0] * 256
    assert y.get().tolist() == [3.0] * started + [0.0] * (1024 - started)
    assert size <= started < size + 256


def test_a_dataclass_goes_by_value_and_defines_make_a_specialisation(xp):
    window = Geometry.of("test", (5, 8, 8, 6), 3, 1, 1, groups=3)
    out = xp.empty(4, np.int32)
    cuda.launch("geometry", 1, 1, out, window, True)
    assert out.get().tolist() == [5, 3, 1, 7]
    cuda.launch("geometry", 1, 1, out, window, False, defines={"VALUE": 9})
    assert out.get().tolist() == [5, 3, 0, 9]


TYPED = """
struct bfloat16 { unsigned short bits; };
struct half { unsigned short bits; };
#ifndef X
#define X float
#endif
extern "C" __global__ void reverse(const X* x, X* y, int n) {
    y[threadIdx.x] = x[n - 1 - threadIdx.x];
}
"""


@pytest.mark.parametrize("define", [None, "half", "bfloat16"])
def test_arrays_have_the_dtype_that_the_defines_give(files, xp, define):
    (files / "typed.cu").write_text(TYPED)
    cuda.kernels.cache_clear()
    dtype = {None: np.float32, "half": np.float16, "bfloat16": bfloat16()}[define]
    defines = define and {"X": define}
    x, y = xp.asarray(np.arange(8).astype(dtype)), xp.empty(8, dtype)
    cuda.launch("reverse", 1, 8, x, y, 8, defines=defines)
    assert y.get().tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    with pytest.raises(DtypeError, match=f"reverse: y: expected an array of {np.dtype(dtype)}"):
        cuda.launch("reverse", 1, 8, x, xp.empty(8, np.uint16), 8, defines=defines)


def test_none_is_a_null_pointer(xp):
    out = xp.empty(1, np.int32)
    cuda.launch("optional", 1, 1, None, out)
    assert out.item() == 0
    cuda.launch("optional", 1, 1, xp.zeros(1, np.float32), out)
    assert out.item() == 1


@pytest.mark.parametrize("size", [64, 4096 * 4])
def test_dynamic_shared_memory_beyond_48_kb_is_requested(xp, size):
    out = xp.empty(64, np.int32)
    cuda.launch("dynamic", 1, 64, out, 64, shared=size * 4)
    np.testing.assert_array_equal(out.get(), np.arange(63, -1, -1))


def test_an_empty_grid_runs_nothing(xp):
    empty = xp.empty(0, np.float32)
    with cuda.count_launches() as launches:
        cuda.launch("scale", 0, 32, empty, empty, 1.0, 0)
    assert launches["scale"] == 1


def test_launches_are_counted_by_name_only_inside_the_block(xp):
    x = xp.zeros(8, np.float32)
    cuda.launch("scale", 1, 8, x, x, 1.0, 8)
    with cuda.count_launches() as outer, cuda.count_launches() as inner:
        cuda.launch("scale", 1, 8, x, x, 1.0, 8)
        cuda.launch("scale", 1, 8, x, x, 1.0, 8)
    cuda.launch("scale", 1, 8, x, x, 1.0, 8)
    assert outer == inner == {"scale": 2}


def test_recorded_launches_say_what_was_launched_and_need_not_run(xp):
    window = Geometry.of("test", (5, 8, 8, 6), 3, 1, 1, groups=3)
    out = xp.full(4, 9, np.int32)
    with cuda.record_launches(run=False) as kept, cuda.count_launches() as counted:
        cuda.launch("geometry", (2, 1), 1, out, window, True, defines={"VALUE": 9})
    assert out.get().tolist() == [9, 9, 9, 9]
    with cuda.record_launches() as ran:
        cuda.launch("optional", 1, 1, None, out)
    assert out.get()[0] == 0
    with pytest.raises(ArgumentError), cuda.record_launches(run=False) as failed:
        cuda.launch("optional", 1, 1, 1, 2)
    out.fill(9)
    cuda.launch("optional", 1, 1, None, out)
    assert out.get()[0] == 0
    assert counted == {"geometry": 1}
    assert (len(ran), len(failed)) == (1, 0)
    (launch,) = kept
    assert (launch.kernel.name, launch.defines) == ("geometry", (("VALUE", 9),))
    assert (launch.grid, launch.block, launch.shared) == ((2, 1, 1), (1, 1, 1), 0)
    array, struct, flag = launch.values
    assert array is out
    assert cuda.struct_values(struct) == dataclasses.asdict(window)
    assert flag.dtype == np.bool_
    assert ran[0].values[0] == 0


def test_a_file_can_be_compiled_before_its_first_launch(xp, monkeypatch):
    from gpucnn.cudasim import compiler

    made, original = [], compiler.compile_kernels
    monkeypatch.setattr(
        compiler, "compile_kernels", lambda *args: made.append(args) or original(*args)
    )
    cuda.compile_file(Device.parse("cudasim"), "outer.cu", (("VALUE", 11),))
    assert len(made) == 1
    out = xp.empty(4, np.int32)
    window = Geometry.of("test", (5, 8, 8, 6), 3, 1, 1)
    cuda.launch("geometry", 1, 1, out, window, True, defines={"VALUE": 11})
    assert out.get()[3] == 11
    assert len(made) == 1


def test_a_struct_is_passed_as_raw_bytes_without_fields_to_describe(xp):
    window = Geometry.of("test", (5, 8, 8, 6), 3, 1, 1, groups=3)
    with cuda.record_launches() as kept:
        cuda.launch("geometry", 1, 1, xp.empty(4, np.int32), window, True)
    struct = kept[0].values[1]
    assert struct.dtype == "V68"
    assert len(struct.__array_interface__["descr"]) == 1
    assert np.frombuffer(struct.tobytes(), np.int32).tolist() == list(dataclasses.astuple(window))


# --- two devices ---


def test_shared_memory_is_requested_on_the_device_that_runs_the_kernel():
    current, calls = [0], []

    class Function:
        def __setattr__(self, name, value):
            calls.append((name, value, current[-1]))

        def __call__(self, grid, block, args, shared_mem):
            calls.append(("run", shared_mem, current[-1]))

    runtime = types.SimpleNamespace(getDevice=lambda: current[-1])
    checked = launcher.CheckedKernel.__new__(launcher.CheckedKernel)
    checked.device, checked.shared_limit, checked.function = (
        Device("cuda", 1),
        48 * 1024,
        Function(),
    )
    checked.xp = types.SimpleNamespace(
        cuda=types.SimpleNamespace(Device=device_class(current), runtime=runtime),
    )
    for shared in (1024, 65536, 65536):
        checked.run((1, 1, 1), (32, 1, 1), shared, ())
    assert calls == [
        ("run", 1024, 1),
        ("max_dynamic_shared_size_bytes", 65536, 1),
        ("run", 65536, 1),
        ("run", 65536, 1),
    ]
    assert current == [0]


@pytest.mark.gpu
def test_a_second_gpu_runs_what_needs_more_shared_memory_than_the_default(files):
    try:
        device = Device.parse("cuda:1")
    except DeviceError as error:
        pytest.skip(str(error).splitlines()[0])
    with device.xp.cuda.Device(1):
        out = device.xp.empty(64, np.int32)
    cuda.launch("dynamic", 1, 64, out, 64, shared=65536)
    np.testing.assert_array_equal(out.get(), np.arange(63, -1, -1))


# --- the simulated device ---


def test_cudasim_is_a_device_of_its_own(xp):
    device = Device.parse("cudasim")
    assert str(device) == "cudasim"
    assert device.xp is cudasim
    with pytest.raises(DeviceError, match="device 'cudasim:1' is unknown"):
        Device.parse("cudasim:1")


def test_without_a_compiler_one_sentence_says_what_to_install(monkeypatch):
    from gpucnn.cudasim import compiler

    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    compiler.compiler.cache_clear()
    try:
        with pytest.raises(
            DeviceError, match=r"needs a C\+\+17 compiler.*\n  install one .apt install"
        ):
            Device.parse("cudasim")
    finally:
        compiler.compiler.cache_clear()
