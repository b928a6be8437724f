"""Several optimizers on several ranks; micro-batches of one process do what ranks do."""

import numpy as np
import pytest
from devices import host
from fake_ranks import run
from test_trainer_on_ranks import COMMON, Items, network

from gpucnn import data, optim, train
from gpucnn.errors import ArgumentError


def build(comm=None, **options):
    """A Trainer with Muon for the matrices and SGD for the vectors."""
    model = network()
    loader = data.DataLoader(Items(), 4, **COMMON)
    optimizer = optim.MultiOptimizer(
        optim.SGD([p for p in model.parameters() if p.ndim == 1], 0.02, momentum=0.9),
        optim.Muon([p for p in model.parameters() if p.ndim > 1], 0.02),
    )
    return train.Trainer(model, optimizer, loader, comm=comm, verbose=False, **options)


def fitted(comm=None, **options):
    trainer = build(comm, **options)
    trainer.fit(2)
    return [host(x).copy() for x in trainer.model.state_dict().values()]


def test_two_ranks_train_several_optimizers_as_one_process_does_in_two_micro_batches():
    first, second = run(2, fitted)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    for a, b in zip(first, fitted(micro_batches=2), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    whole = fitted()  # batch normalisation of the whole batch
    assert any(np.abs(a - b).max() > 1e-2 for a, b in zip(first, whole, strict=True))


def test_a_rank_has_no_micro_batches():
    def program(comm):
        with pytest.raises(ArgumentError, match="micro_batches=2 with comm: a process has a part"):
            build(comm, micro_batches=2)

    run(2, program)
