"""GradScaler with several ranks: an overflow on one is one on all."""

import numpy as np
import pytest
from devices import host, leaf
from fake_ranks import run

from gpucnn import data, distributed, nn, optim, train


def test_all_ranks_leave_out_a_step_that_overflows_on_one_and_keep_one_scale(device):
    def program(comm):
        p = leaf(np.ones(3, np.float32), device)
        optimizer = distributed.DistributedOptimizer(optim.SGD([p], 0.5), comm)
        scaler, found = optim.GradScaler(device), []
        for step in range(3):
            optimizer.zero_grad()
            factor = np.inf if step == 1 and comm.rank == 1 else 1 + comm.rank
            scaler.backward((p * float(factor)).sum())
            scaler.step(optimizer)
            found.append((host(p).tolist(), scaler.get_scale()))
        return found

    first, second = run(2, program)
    assert first == second
    assert first == [([0.25] * 3, 2.0**16), ([0.25] * 3, 2.0**15), ([-0.5] * 3, 2.0**15)]


@pytest.mark.parametrize("start", [2.0**10, 2.0**30])
def test_trainers_of_two_ranks_in_fp16_train_alike_and_as_one(start, device):
    def program(comm):
        rng = np.random.default_rng(0)  # ranks are threads, which share the default generator
        images = rng.integers(0, 256, (32, 6, 6, 3), np.uint8)
        dataset = data.Dataset(images, np.arange(32) % 4, tuple("abcd"))
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 4), nn.Flatten())
        for p in model.parameters():
            p.data[...] = 0.2 * rng.standard_normal(p.shape, np.float32)
        model.to(device)
        normalize = data.Normalize((0.5,) * 3, (0.25,) * 3)
        loader = data.DataLoader(dataset, 8, transform=normalize, device=device)
        optimizer = optim.SGD(model.parameters(), 0.05)
        trainer = train.Trainer(model, optimizer, loader, comm=comm, precision="fp16")
        trainer.scaler.load_state_dict({"scale": start, "good_steps": 0, "skipped": 0})
        trainer.fit(6)
        return [host(p).tolist() for p in model.parameters()], trainer.scaler.state_dict()

    (mine, scale), (theirs, other) = run(2, program)
    assert mine == theirs
    assert scale == other
    if start == 2.0**30:
        assert scale["skipped"] > 2  # float16 has no gradients as large
        return
    assert scale == {"scale": start, "good_steps": 24, "skipped": 0}
    (alone,) = run(1, program)
    for a, b in zip(mine, alone[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=2e-3)
