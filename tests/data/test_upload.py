"""Asynchronous uploads: copies that complete late, two pinned buffers, a host that never waits."""

import functools
import types
import weakref

import numpy as np
import pytest
from devices import host
from fake_cuda import device_class

import gpucnn
from gpucnn import cudasim, nn, optim, train
from gpucnn.data import DataLoader, Dataset, Normalize, upload
from gpucnn.data.on_device import OnDevice
from gpucnn.data.upload import Uploader
from gpucnn.device import Device

DEVICE = Device("cudasim")


class Items:
    """A data set that stays on the host; all pixels of image i are i."""

    def __init__(self, n=20, size=6, broken=None):
        self.n, self.size, self.broken = n, size, broken

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.broken:
            raise OSError(f"image {i} is damaged")
        return np.full((self.size, self.size, 3), i, np.uint8), i % 4


def numbers(n, size=5000):
    return ((np.full(size, i, np.float32), np.arange(i, dtype=np.int64)) for i in range(n))


def pending(uploader):
    """The number of copies in flight."""
    return len(uploader._stream._copies)


def waits():
    return cudasim.cuda.counters.host_syncs


def test_batches_arrive_whole_without_the_host_waiting():
    uploader, before = Uploader(DEVICE), waits()
    got = []
    for x, labels in uploader.upload(numbers(7)):
        assert waits() == before
        got.append((x.get(), labels.get()))
        before = waits()
    assert len(got) == 7
    for i, (x, labels) in enumerate(got):
        assert (x == i).all()
        assert labels.tolist() == list(range(i))
    assert len(uploader._buffers) == 2


def test_the_next_batch_is_being_copied_while_one_is_in_use():
    uploader = Uploader(DEVICE)
    in_flight = [pending(uploader) for _ in uploader.upload(numbers(4))]
    assert in_flight == [2, 2, 2, 0]


def test_all_batches_may_be_kept():
    kept = list(Uploader(DEVICE).upload(numbers(9)))
    assert [x.get()[0] for x, _ in kept] == list(range(9))


def test_batches_of_any_size_are_copied():
    sizes = [0, 3, 10_000, 1, 0, 40_000, 2]
    batches = ((np.full(n, n, np.int32),) for n in sizes)
    for n, (x,) in zip(sizes, Uploader(DEVICE).upload(batches), strict=True):
        assert x.get().tolist() == [n] * n


def test_leaving_early_leaves_no_copy_in_flight():
    uploader = Uploader(DEVICE)
    batches = uploader.upload(numbers(5))
    next(batches)
    assert pending(uploader)
    batches.close()
    assert pending(uploader) == 0


def test_an_error_comes_after_the_batches_before_it():
    loader = DataLoader(Items(broken=13), 4, device="cudasim", prefetch=0)
    seen = []
    with pytest.raises(OSError, match="image 13 is damaged"):
        seen.extend(images.numpy().max() for images, _ in loader)
    assert seen == [3, 7, 11]
    assert pending(loader._uploader) == 0


def test_the_host_waits_for_the_oldest_copy_once_four_are_in_flight(monkeypatch):
    uploader = Uploader(DEVICE)
    # A device so far behind that no copy has completed:
    monkeypatch.setattr(uploader, "_wait_for", lambda upload: upload.arrays)
    before = waits()
    batches = uploader.upload(numbers(8))
    for i in range(4):
        next(batches)
        assert waits() == before + (i == 3)
    assert len(uploader._buffers) == 4
    rest = [x for x, _ in batches]
    cudasim.cuda.Device(0).synchronize()
    assert [x.get()[0] for x in rest] == [4, 5, 6, 7]


def test_pinned_memory_is_not_freed_while_a_copy_reads_it():
    uploader = Uploader(DEVICE)
    (x,), _ = uploader._start((np.ones(5, np.float32),))
    assert np.isnan(x.get()).all()
    del uploader
    assert (x.get() == 1).all()


# --- another stream inside the loop ---


def test_a_stream_inside_the_loop_waits_for_its_batch_and_the_next_batch_for_that_stream():
    loader, producer = DataLoader(Items(), 5, device="cudasim"), cudasim.cuda.Stream.null
    stream = cudasim.cuda.Stream(non_blocking=True)
    came = 0  # when the previous batch was ready
    for images, labels in loader:
        if came:
            assert producer._waited[stream] > came
        with stream:
            images.numpy(), labels.numpy()
        assert stream._waited[producer] > max(came, producer._waited.get(stream, 0))
        came = stream._waited[producer]
    assert producer._waited[stream] > came


def test_batches_used_on_another_stream_have_the_right_values(gpu):
    device = Device.parse(gpu)
    with device.xp.cuda.Device(device.index):
        stream = device.xp.cuda.Stream(non_blocking=True)
        with stream:  # compile the kernels here
            (gpucnn.tensor(np.ones((4, 6, 6, 3), np.float32), gpu) * 1.0).sum()
    sums = []
    for images, labels in DataLoader(
        Items(40), 4, transform=lambda x, _: x.astype(np.float32), device=gpu
    ):
        with device.xp.cuda.Device(device.index), stream:
            sums.append((images * 1.0).sum() + labels.astype(np.float32).sum())
        del images, labels
    with device.xp.cuda.Device(device.index), stream:
        got = [s.item() for s in sums]
    expected = [
        images.sum(dtype=np.float64) + labels.sum() for images, labels in DataLoader(Items(40), 4)
    ]
    assert got == expected


def test_images_produced_on_the_device_may_be_used_on_another_stream(gpu, compiler):
    device, rng = Device.parse(gpu), np.random.default_rng(3)
    data = Dataset(rng.integers(0, 256, (40, 6, 6, 3), np.uint8), np.arange(40) % 2, ("a", "b"))
    normalize = Normalize((0.0,) * 3, (1 / 255,) * 3)
    with device.xp.cuda.Device(device.index):
        stream = device.xp.cuda.Stream(non_blocking=True)
    sums = []
    for images, _ in DataLoader(data, 4, transform=normalize, device=gpu):
        with device.xp.cuda.Device(device.index), stream:
            sums.append(images.sum())
        del images
    with device.xp.cuda.Device(device.index), stream:
        got = [s.item() for s in sums]
    assert got == pytest.approx(data.images.reshape(10, -1).sum(axis=1, dtype=np.float64), rel=1e-6)


def test_shape_dtype_and_device_of_a_batch_do_not_wait():
    stream, producer = cudasim.cuda.Stream(non_blocking=True), cudasim.cuda.Stream.null
    images, _ = next(iter(DataLoader(Items(), 5, device="cudasim")))
    with stream:
        assert (images.shape, images.ndim, images.size, len(images)) == ((5, 6, 6, 3), 4, 540, 5)
        assert (images.dtype, images.device) == (np.uint8, DEVICE)
        assert producer not in stream._waited
        images.data  # noqa: B018
        assert producer in stream._waited


# --- seeded faults ---


def wrong_batches(uploader):
    """The number of batches, out of eight, that arrive with wrong values."""
    return sum((x.get() != i).any() for i, (x, _) in enumerate(uploader.upload(numbers(8))))


def test_seeded_fault_the_consumer_does_not_wait_for_the_copy(monkeypatch):
    uploader = Uploader(DEVICE)
    monkeypatch.setattr(uploader, "_wait_for", lambda upload: upload.arrays)
    assert wrong_batches(uploader) >= 4


def test_seeded_fault_a_buffer_is_reused_before_its_event(monkeypatch):
    uploader = Uploader(DEVICE)
    only = uploader._acquire_buffer(2**20)
    monkeypatch.setattr(uploader, "_acquire_buffer", lambda size: only)
    assert wrong_batches(uploader) >= 4


def test_seeded_fault_the_copy_does_not_wait_for_work_on_its_targets_memory(monkeypatch):
    uploader = Uploader(DEVICE)
    monkeypatch.setattr(uploader._stream, "wait_event", lambda event: None)
    with pytest.raises(RuntimeError, match="whose earlier work may still use it"):
        wrong_batches(uploader)


def test_without_a_fault_no_batch_is_wrong():
    assert wrong_batches(Uploader(DEVICE)) == 0


# --- the loader, and training from it ---


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_loader_yields_the_same_batches_as_on_the_cpu(prefetch):
    batches = [
        [
            (images.numpy(), labels.numpy())
            for images, labels in DataLoader(
                Items(), 6, shuffle=True, seed=3, prefetch=prefetch, device=device
            )
        ]
        for device in ("cudasim", "cpu")
    ]
    for mine, theirs in zip(*batches, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


def test_a_loader_resumes_after_the_last_batch_yielded():
    loader = DataLoader(Items(), 5, device="cudasim")
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    assert state["batch"] == 1  # although the second is being copied
    other = DataLoader(Items(), 5, device="cudasim")
    other.load_state_dict(state)
    assert [int(images.numpy()[0, 0, 0, 0]) for images, _ in other] == [5, 10, 15]


def test_a_training_step_does_not_make_the_host_wait():
    try:
        cudasim.require_compiler()
    except gpucnn.GpucnnError as error:
        pytest.skip(f"no C++ compiler: {error}")

    def as_floats(images, generator):
        return images.astype(np.float32) / 20

    loader = DataLoader(Items(24), 4, transform=as_floats, device="cudasim")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    model.to("cudasim")
    seen = []

    class Count(train.Callback):
        def on_batch_end(self, trainer):
            seen.append((waits(), pending(loader._uploader)))

    trainer = train.Trainer(model, optim.SGD(model.parameters(), 0.01), loader, callbacks=[Count()])
    trainer.fit(1)
    assert len({count for count, _ in seen}) == 1
    assert all(copies == 2 for _, copies in seen[:-1])  # images and labels of the next batch
    assert trainer.history[0]["step_ms"] > 0


def test_a_data_set_on_the_device_uploads_its_draws_without_waiting(monkeypatch, compiler):
    images = np.arange(12 * 4 * 4 * 3, dtype=np.uint8).reshape(12, 4, 4, 3)
    data = Dataset(images, np.arange(12) % 2, ("a", "b"))
    loader = DataLoader(data, 4, transform=Normalize((0.0,) * 3, (1.0,) * 3), device="cudasim")
    before, counts = waits(), []
    for _ in loader:
        counts.append(waits() - before)
    assert counts == [1, 1, 1]  # once, for the images


def test_pinned_memory_is_allocated_only_twice_in_a_run(monkeypatch):
    asked = []
    real = cudasim.cuda.alloc_pinned_memory
    monkeypatch.setattr(
        cudasim.cuda, "alloc_pinned_memory", lambda size: asked.append(size) or real(size)
    )
    loader = DataLoader(Items(), 5, device="cudasim")
    for _ in range(3):
        for _ in loader:
            pass
    assert len(asked) == 2


def test_the_target_device_is_current_while_it_gets_a_batch():
    """CuPy must create everything for a batch on cuda:1 while cuda:1 is current."""
    current, made_on = [0], []

    def noting(function):
        def noted(*args, **options):
            made_on.append(current[-1])
            return function(*args, **options)

        return noted

    real = cudasim.cuda
    cuda = types.SimpleNamespace(
        Device=device_class(current),
        Stream=noting(real.Stream),
        Event=noting(real.Event),
        alloc_pinned_memory=noting(real.alloc_pinned_memory),
        get_current_stream=noting(real.get_current_stream),
        get_allocator=real.get_allocator,
        using_allocator=real.using_allocator,
        memory=real.memory,
    )
    xp = types.SimpleNamespace(cuda=cuda, empty=noting(cudasim.empty))

    class Elsewhere(Device):
        xp = property(lambda self: fake)

    fake = xp
    list(Uploader(Elsewhere("cuda", 1)).upload(numbers(3)))
    assert set(made_on) == {1}
    assert len(made_on) > 10


# --- a whole data set, in chunks ---


@pytest.fixture
def pinned(gpu, monkeypatch):
    """The pinned memory of `upload_in_chunks`, as weak references, with its sizes."""
    cuda, made = Device.parse(gpu).xp.cuda, []
    real = cuda.PinnedMemoryPool

    def take(size):
        memory = cuda.PinnedMemory(size)
        made.append((weakref.ref(memory), size))
        return cuda.PinnedMemoryPointer(memory, 0)

    class Simulated(real):
        def malloc(self, size):
            memory = super().malloc(size)
            made.append((weakref.ref(memory), size))
            return memory

    Pool = Simulated if gpu == "cudasim" else functools.partial(real, take)
    monkeypatch.setattr(cuda, "PinnedMemoryPool", Pool)
    return made


@pytest.mark.parametrize("count", [0, 1, 512, 513, 5000])
def test_upload_in_chunks_copies_through_two_buffers_and_frees_them(
    gpu, pinned, monkeypatch, count
):
    monkeypatch.setattr(upload, "CHUNK_BYTES", 2048)  # 512 elements
    device, array = Device.parse(gpu), np.arange(count, dtype=np.int32).reshape(-1, 1)
    copy = upload.upload_in_chunks(array[::-1], device)
    np.testing.assert_array_equal(host(copy), array[::-1])
    assert len(pinned) == min(-(-count // 512), 2)
    assert all(size <= 2048 for _, size in pinned)
    assert [memory() for memory, _ in pinned] == [None] * len(pinned)


def test_a_data_set_pins_at_most_128_mib_and_leaves_none_pinned(gpu, pinned, compiler):
    assert upload.CHUNK_BYTES == 64 * 2**20
    data = Dataset(np.ones((3, 4096, 4096, 3), np.uint8), np.zeros(3, np.int64), ("a",))
    device = Device.parse(gpu)
    OnDevice.try_create(data, Normalize((0.0,) * 3, (1.0,) * 3), device)
    assert [size for _, size in pinned] == [64 * 2**20] * 2
    assert [memory() for memory, _ in pinned] == [None, None]


def test_seeded_fault_a_chunk_is_overwritten_before_its_copy(monkeypatch):
    monkeypatch.setattr(upload, "CHUNK_BYTES", 2048)
    monkeypatch.setattr(cudasim.cuda.Event, "synchronize", lambda event: None)
    array = np.arange(5000, dtype=np.int32)
    assert (upload.upload_in_chunks(array, DEVICE).get() != array).any()
