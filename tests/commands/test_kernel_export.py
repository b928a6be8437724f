"""Exported kernels: NVIDIA's tools read the files, and the launches can be replayed from them."""

import json
import os
import re
import subprocess
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from devices import CUDA, CUDASIM

import gpucnn
from gpucnn import cuda, cudasim
from gpucnn.commands import launches
from gpucnn.commands.kernel_export import export_kernels
from gpucnn.cuda import card, launcher, nvrtc, sass
from gpucnn.cuda.declarations import assemble
from gpucnn.device import Device
from gpucnn.errors import DeviceError
from gpucnn.integers import ceil_div
from gpucnn.precision import float32_precision

BATCH = 8  # the smallest at which every sum of the step is split, as in a batch of 128
ARCHITECTURES = [80, 90]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, nvrtc_library):
    folder = tmp_path_factory.mktemp("exported") / "kernels"
    export_kernels("alexnet_cifar10", ARCHITECTURES, folder, BATCH)
    return folder


@pytest.fixture(scope="module")
def manifest(exported):
    return json.loads((exported / "manifest.json").read_text())


def in_order(manifest):
    """(entry, launch) of every launch, by number."""
    pairs = [(entry, launch) for entry in manifest["entries"] for launch in entry["launches"]]
    pairs.sort(key=lambda pair: pair[1]["number"])
    assert [launch["number"] for _, launch in pairs] == list(range(len(pairs)))
    return pairs


# --- the files ---


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_every_cubin_is_machine_code_that_nvdisasm_and_cuobjdump_read(
    exported, manifest, architecture
):
    try:
        folder = Path(sass._nvdisasm()).parent
    except DeviceError as error:
        pytest.skip(str(error))
    kernels = defaultdict(set)
    for entry in manifest["entries"]:
        kernels[entry["cubin"][architecture]].add(entry["name"])

    def check(item):
        path, names = item
        listing = output(folder / "nvdisasm", "-c", exported / path)
        assert f".target\t{architecture}" in listing
        assert names <= set(re.findall(r"^\.text\.(\w+):", listing, re.MULTILINE))
        if (folder / "cuobjdump").exists():
            assert architecture in output(folder / "cuobjdump", "--list-elf", exported / path)

    with ThreadPoolExecutor() as pool:
        list(pool.map(check, kernels.items()))


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_source_and_options_suffice_to_recompile_every_kernel(exported, manifest):
    compiled = {}
    for entry in manifest["entries"]:
        source = (exported / entry["source"]).read_text()
        file = Path(entry["source"]).stem.partition("-")[0] + ".cu"  # defines follow the hyphen
        assert source == assemble(file)
        for architecture, path in entry["ptx"].items():
            ptx = (exported / path).read_text()
            assert f".target {architecture}" in ptx
            assert f".entry {entry['name']}(" in ptx
        key = source, *entry["options"]
        if key not in compiled:
            compiled[key] = nvrtc.compile_source(source, "again.cu", 80, entry["options"])
        usage = compiled[key].usage[entry["name"]]
        assert usage.registers == entry["registers"]["sm_80"] <= entry["register_budget"]
        assert usage.shared == entry["static_shared_bytes"]["sm_80"]


# --- the launches ---


@pytest.fixture(scope="module", params=[CUDASIM, CUDA])
def target(request):
    return Device.parse(request.param)


@pytest.fixture(scope="module")
def real(target):
    """Every launch of a real batch and step on a GPU: grid, block, arguments before and after."""
    seen = []
    run = launcher.CheckedKernel.run

    def host(values):
        return [v.get() if isinstance(v, target.xp.ndarray) else v for v in values]

    def watched(self, grid, block, shared, values):
        before = host(values)
        run(self, grid, block, shared, values)
        seen.append((self.declared.name, grid, block, shared, before, host(values)))

    planned = cuda.card_of(Device("cudasim"))  # as the export is
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher.CheckedKernel, "run", watched)
        patch.setattr(card, "_reference", planned)
        with float32_precision("highest"), cuda.count_launches() as counted:
            phases = ("batch", "training")
            launches.of_model("alexnet_cifar10", BATCH, phases, target, run=True)
    assert sum(counted.values()) == len(seen)
    return seen


@pytest.mark.slow
def test_the_manifest_has_the_launches_of_a_real_step_in_their_order(manifest, real):
    listed = [
        (entry["name"], tuple(launch["grid"]), tuple(entry["block"]), entry["dynamic_shared_bytes"])
        for entry, launch in in_order(manifest)
    ]
    assert listed == [launch[:4] for launch in real]
    assert manifest["launches"] == {"batch": 1, "training": len(real) - 1}


def test_recording_is_repeatable_and_does_not_advance_the_default_generator():
    def numbers():
        made = launches.of_model("alexnet_cifar10", BATCH, ("training",))["training"]
        return [[v for v in launch.values if isinstance(v, np.generic)] for launch in made]

    state = gpucnn.random.default_generator().bit_generator.state
    first = numbers()
    assert any(len(values) > 5 for values in first)  # dropout's, for one
    assert str(gpucnn.random.default_generator().bit_generator.state) == str(state)
    gpucnn.manual_seed(7)
    assert numbers() == first


def test_a_batch_of_128_makes_as_many_launches_as_the_small_batch_of_these_tests():
    counts = [
        len(launches.of_model("alexnet_cifar10", batch, ("training",))["training"])
        for batch in (BATCH, 128)
    ]
    assert counts[0] == counts[1]


class Replay:
    """Replays launches from the exported files only: cubins on a GPU, sources on the simulator."""

    def __init__(self, folder, manifest, target):
        self.folder, self.xp = folder, target.xp
        self.buffers = [self.xp.empty(size, np.uint8) for size in manifest["buffers"]]
        self.modules = {}
        self.capability = int(self.xp.cuda.Device(target.index).compute_capability)

    def function(self, entry):
        key = entry["source"], *entry["options"]
        if key not in self.modules:
            if self.xp is cudasim:
                code = (self.folder / entry["source"]).read_text()
                inline = assemble("ptx.cuh").partition("\n")[2]  # PTX: the simulator has its own
                code = code.replace(inline, '#include "ptx.h"\n')
                module = self.xp.RawModule(code=code, options=tuple(entry["options"]))
            else:
                module = self.xp.RawModule(path=str(self.folder / self.binary(entry)))
            self.modules[key] = module
        return self.modules[key].get_function(entry["name"])

    def binary(self, entry):
        """The cubin for this GPU, else the newest PTX that its driver can compile.

        CUPY_COMPILE_WITH_PTX=1 selects PTX, as it does in CuPy.
        """
        known = [a for a in ARCHITECTURES if a <= self.capability]
        same = [a for a in known if a // 10 == self.capability // 10]
        if os.environ.get("CUPY_COMPILE_WITH_PTX") == "1":
            same = []
        return entry["cubin"][f"sm_{same[-1]}"] if same else entry["ptx"][f"sm_{known[-1]}"]

    def value(self, argument):
        if argument["kind"] == "null":
            return np.uint64(0)
        if argument["kind"] == "number":
            return np.dtype(argument["dtype"]).type(argument["value"])
        if argument["kind"] == "struct":
            fields = argument["fields"]
            return np.array(tuple(fields.values()), [(name, np.int32) for name in fields])
        dtype = np.dtype(argument["dtype"])
        end = argument["offset"] + int(np.prod(argument["shape"])) * dtype.itemsize
        memory = self.buffers[argument["buffer"]][argument["offset"] : end]
        array = memory.view(dtype).reshape(argument["shape"])
        if "values" in argument:
            array[...] = self.xp.asarray(np.array(argument["values"], dtype))
        return array

    def run(self, entry, launch, values):
        shared = entry["dynamic_shared_bytes"]
        self.function(entry)(
            tuple(launch["grid"]), tuple(entry["block"]), tuple(values), shared_mem=shared
        )


@pytest.fixture
def replay(exported, manifest, target):
    with gpucnn.device(target):
        yield Replay(exported, manifest, target)


@pytest.mark.slow
def test_each_launch_replayed_from_the_files_gives_the_same_bits(replay, manifest, target, real):
    for (entry, launch), (*_, before, after) in zip(in_order(manifest), real, strict=True):
        values = [replay.value(argument) for argument in launch["arguments"]]
        for argument, value, was in zip(launch["arguments"], values, before, strict=True):
            if argument["kind"] == "array":
                assert (was.dtype, was.shape) == (value.dtype, value.shape), argument
                if "values" in argument:
                    np.testing.assert_array_equal(value.get(), was)
                value.set(was)
            else:
                assert was.tobytes() == value.tobytes(), argument
        replay.run(entry, launch, values)
        for argument, value, expected in zip(launch["arguments"], values, after, strict=True):
            if argument["kind"] == "array":
                assert same(value.get(), expected, target), (launch["number"], entry["name"])


@pytest.mark.slow
def test_a_wrong_number_in_the_manifest_is_detected(replay, manifest, target, real):
    entry, launch = next(pair for pair in in_order(manifest) if pair[0]["name"] == "dropout")
    *_, before, after = real[launch["number"]]
    for size, equal in ((launch["arguments"][-1]["value"], True), (5, False)):
        values = [replay.value(argument) for argument in launch["arguments"]]
        values[0].set(before[0])
        values[1].fill(7)
        values[-1] = np.dtype(launch["arguments"][-1]["dtype"]).type(size)
        replay.run(entry, launch, values)
        assert same(values[1].get(), after[1], target) == equal


def same(ours, theirs, target):
    """Whether they are bit-identical; on a GPU within 1e-6, as CuPy may use another NVRTC.

    Elements that no kernel writes may be NaN in both.
    """
    if ours.tobytes() == theirs.tobytes():
        return True
    if target.kind != "cuda" or ours.dtype != np.float32:
        return False
    finite = np.isfinite(theirs)
    if not (np.isfinite(ours) == finite).all():
        return False
    ours, theirs = ours[finite], theirs[finite]
    return np.abs(ours - theirs).max(initial=0) <= 1e-6 * np.abs(theirs).max(initial=0)


@pytest.mark.slow
def test_replaying_all_launches_from_the_manifest_gives_finite_numbers(replay, manifest):
    rng = np.random.default_rng(1)
    for buffer in replay.buffers:  # arbitrary, like uninitialised memory
        numbers = rng.standard_normal(ceil_div(buffer.size, 4), np.float32) * np.float32(0.01)
        buffer.set(numbers.view(np.uint8)[: buffer.size])
    for entry, launch in in_order(manifest):
        values = [replay.value(argument) for argument in launch["arguments"]]
        replay.run(entry, launch, values)
        for argument, value in zip(launch["arguments"], values, strict=True):
            if argument["kind"] == "array" and argument["dtype"] == "float32":
                assert np.isfinite(value.get()).all(), (launch["number"], entry["name"], argument)
