"""Out of memory: cached blocks are freed, the allocation is retried, then an error names the op."""

import gc
import types

import numpy as np
import pytest
from devices import SECOND_CUDA
from fake_cuda import device_class

import gpucnn
from gpucnn import cudasim, nn, ops, optim, train
from gpucnn.data import DataLoader
from gpucnn.device import Device
from gpucnn.errors import DeviceError
from gpucnn.out_of_memory import used_bytes

POOL = cudasim.get_default_memory_pool()


@pytest.fixture(autouse=True)
def compiler():
    try:
        cudasim.require_compiler()
    except DeviceError as error:
        pytest.skip(f"no C++ compiler: {error}")


@pytest.fixture
def limit_memory(monkeypatch):
    """Call limit_memory(size) to limit the device to `size` bytes more than are in use."""

    def limit(size):
        gc.collect()
        POOL.free_all_blocks()
        monkeypatch.setenv("GPUCNN_CUDASIM", f"memory={POOL.used_bytes() + size}")

    yield limit
    POOL.set_limit(0)


class Block(nn.Module):
    def __init__(self):
        self.layers = [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 64, 3, padding=1)]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Block(), nn.GlobalAvgPool2d(), nn.Linear(64, 4)
    ).to("cudasim")


def images(n):
    return np.zeros((n, 16, 16, 3), np.float32)


def step(model, optimizer, n):
    x = gpucnn.tensor(images(n), device="cudasim")
    labels = gpucnn.tensor(np.zeros(n, np.int64), device="cudasim")
    loss = ops.cross_entropy(model(x), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def error_of(model, n):
    """The error of a forward pass with n images, without its traceback."""
    try:
        model(gpucnn.tensor(images(n), device="cudasim"))
    except gpucnn.OutOfMemory as error:
        return error.with_traceback(None)
    raise AssertionError("everything fitted")


@pytest.mark.parametrize("limit", ["the device's memory", "the pool's limit"])
def test_memory_that_the_pool_caches_is_freed_and_the_op_succeeds(limit_memory, limit):
    if limit == "the device's memory":
        limit_memory(2**20)
    else:  # here CuPy's pool itself fails at once
        limit_memory(2**30)
        POOL.set_limit(POOL.used_bytes() + 2**20)
    x = gpucnn.tensor(np.ones(2**16, np.float32), device="cudasim")
    del x
    assert POOL.free_bytes() == 2**18
    y = gpucnn.tensor(np.ones(2**18 - 2**15, np.float32), device="cudasim")
    assert POOL.free_bytes() == 0
    assert y.numpy().sum() == 2**18 - 2**15


def size(n):
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"


def test_the_error_names_layer_op_bytes_and_the_batch_that_would_fit(limit_memory):
    model = network()
    limit_memory(3 * 2**20)
    error = error_of(model, 64)
    assert error.where == "conv2d in layer 1.layers.2 (Conv2d)"
    assert error.requested == 64 * 16 * 16 * 64 * 4
    assert error.images == 64
    assert 0 < error.batch_size < 64
    assert str(error) == (
        "conv2d in layer 1.layers.2 (Conv2d): cannot allocate 4.0 MiB on cudasim: "
        f"{size(error.free)} free, {size(error.used)} in use\n"
        f"  use a smaller batch: about {error.batch_size} images instead of 64, estimated from the "
        "layers so far"
    )
    assert isinstance(error, MemoryError)
    assert isinstance(error, gpucnn.GpucnnError)


def test_the_batch_that_the_error_names_gets_past_that_layer(limit_memory):
    model = network()
    limit_memory(3 * 2**20)
    with gpucnn.no_grad():
        fits = error_of(model, 64).batch_size
        assert fits > 20
        y = model(gpucnn.tensor(images(fits), device="cudasim"))
    assert y.shape == (fits, 4)


def test_in_training_the_estimate_leaves_room_for_the_parameters_gradients(limit_memory):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16 * 16 * 3, 256), nn.Linear(256, 256)).to(
        "cudasim"
    )
    limit_memory(2**20 + 200_000)
    trained = error_of(model, 256).batch_size
    with gpucnn.no_grad():
        applied = error_of(model, 256).batch_size
    gradients = sum(p.data.nbytes for p in model.parameters())
    assert gradients > 0.9 * 2**20
    assert trained < 0.3 * applied


def test_a_gradient_that_does_not_fit_names_the_layer_of_its_op(limit_memory):
    model = network()
    x = gpucnn.tensor(images(16), device="cudasim")
    loss = model(x).sum()
    limit_memory(2**20 + 100_000)
    with pytest.raises(gpucnn.OutOfMemory) as caught:
        loss.backward()
    error = caught.value
    assert error.where.startswith("the gradient of ")
    assert "in layer 1.layers." in error.where
    assert error.images == 16


def test_a_fused_convolution_that_does_not_fit_is_named_itself(limit_memory):
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.MaxPool2d(2)).to("cudasim")
    limit_memory(2**20)
    assert error_of(model, 64).where == "conv2d in layer 0 (Conv2d)"


def test_no_image_fits_where_the_layer_is_too_large_for_one(limit_memory):
    model = network()
    limit_memory(40_000)
    with pytest.raises(gpucnn.OutOfMemory, match=r"not even one image would fit"), gpucnn.no_grad():
        model(gpucnn.tensor(images(1), device="cudasim"))


def test_outside_of_a_model_the_error_names_only_the_op(limit_memory):
    x = gpucnn.tensor(np.ones(1024, np.float32), device="cudasim")
    limit_memory(100)
    with pytest.raises(
        gpucnn.OutOfMemory, match=r"^exp: cannot allocate 4.0 KiB on cudasim"
    ) as caught:
        ops.exp(x)
    assert caught.value.batch_size is None
    assert "free arrays that are not needed, or use a smaller model or batch" in str(caught.value)
    with pytest.raises(gpucnn.OutOfMemory, match=r"^the state of Adam: cannot allocate"):
        optim.Adam([nn.Parameter(x.data)], 0.1)
    with pytest.raises(gpucnn.OutOfMemory, match=r"^an array: cannot allocate"):
        gpucnn.tensor(np.ones(100_000), device="cudasim")


def test_training_continues_with_a_smaller_batch_and_no_memory_leaks(limit_memory):
    model = network()
    optimizer = optim.SGD(model.parameters(), 0.01)
    step(model, optimizer, 2)
    optimizer.zero_grad()
    limit_memory(3 * 2**20)
    gc.collect()
    gc.disable()  # reference counts must free everything
    try:
        used = POOL.used_bytes()
        for _ in range(2):
            with pytest.raises(gpucnn.OutOfMemory):
                step(model, optimizer, 64)
            assert POOL.used_bytes() == used
            assert np.isfinite(step(model, optimizer, 4))
            optimizer.zero_grad()
    finally:
        gc.enable()


def test_a_handler_may_retry_at_once(limit_memory):
    model = network()
    limit_memory(3 * 2**20)
    x = gpucnn.tensor(images(64), device="cudasim")
    with gpucnn.no_grad():
        try:
            model(x)
        except gpucnn.OutOfMemory as error:  # its frames are still alive
            y = model(gpucnn.tensor(images(error.batch_size // 2), device="cudasim"))
    assert np.isfinite(y.numpy()).all()


def test_a_batch_that_does_not_fit_is_an_error_of_the_loader(limit_memory):
    class Items:
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return np.zeros((64, 64, 3), np.uint8), 0

    loader = DataLoader(Items(), 4, device="cudasim")
    limit_memory(20_000)
    with pytest.raises(gpucnn.OutOfMemory, match=r"^the next batch: cannot allocate 48.0 KiB"):
        next(iter(loader))


def test_the_trainer_raises_the_error_and_can_be_used_again(limit_memory):
    class Items:
        def __len__(self):
            return 64

        def __getitem__(self, i):
            image = np.full((16, 16, 3), i, np.uint8)
            image[0] = 64 - i
            return image, i % 4

    def as_floats(x, generator):
        return x.astype(np.float32) / 64

    def loader(batch_size):
        return DataLoader(Items(), batch_size, transform=as_floats, device="cudasim")

    model = network()
    trainer = train.Trainer(model, optim.SGD(model.parameters(), 0.01), loader(64))
    limit_memory(3 * 2**20)
    with pytest.raises(gpucnn.OutOfMemory, match=r"layer 1.layers.2"):
        trainer.fit(1)
    trainer.loader = loader(4)
    trainer.fit(1)
    assert trainer.step == 16


def test_dropout_draws_once_even_if_its_allocation_is_retried(limit_memory):
    x = np.ones(2**15, np.float32)
    results = []
    for full in (False, True):
        gpucnn.manual_seed(4)
        limit_memory(2**30)
        on_device = gpucnn.tensor(x, device="cudasim")
        if full:
            POOL.set_limit(POOL.total_bytes() + 2**18)
            del_me = cudasim.zeros(2**16 - 2**10, np.float32)
            del del_me
        results.append([ops.dropout(on_device, 0.5).numpy() for _ in range(2)])
        POOL.set_limit(0)
    np.testing.assert_array_equal(*results)


# --- two devices ---


@pytest.mark.parametrize("name", [SECOND_CUDA])
def test_used_bytes_are_those_of_the_given_device(name):
    device = Device.parse(name)
    gc.collect()
    before = used_bytes(device)
    first = gpucnn.tensor(np.zeros(1 << 20, np.float32), device="cuda:0")
    assert used_bytes(device) == before
    second = gpucnn.tensor(np.zeros(1 << 18, np.float32), device=name)
    assert used_bytes(device) == before + second.data.nbytes
    del first, second


def test_used_bytes_makes_the_device_current_before_asking_its_pool():
    current = [0]

    pool = types.SimpleNamespace(used_bytes=lambda: (100, 700)[current[-1]])
    xp = types.SimpleNamespace(
        cuda=types.SimpleNamespace(Device=device_class(current)),
        get_default_memory_pool=lambda: pool,
    )

    class Elsewhere(Device):
        xp = property(lambda self: fake)

    fake = xp
    assert used_bytes(Elsewhere("cuda", 1)) == 700
    assert used_bytes(Elsewhere("cuda", 0)) == 100
