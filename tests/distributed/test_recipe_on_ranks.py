"""Several optimizers on several ranks; micro-batches of one process do what ranks do."""

import numpy as np
import pytest
from devices import host
from fake_ranks import run
from test_trainer_on_ranks import COMMON, Items, network

from gpucnn import data, optim, train
from gpucnn.errors import ArgumentError


def build(comm=None, freeze=None, **options):
    """A Trainer with Muon for the matrices and SGD for the vectors.

    With freeze, a bool, the vectors' rate is 0 after two steps.
    """
    model = network()
    loader = data.DataLoader(Items(), 4, **COMMON)
    optimizer = optim.MultiOptimizer(
        optim.SGD([p for p in model.parameters() if p.ndim == 1], 0.02, momentum=0.9),
        optim.Muon([p for p in model.parameters() if p.ndim > 1], 0.02),
    )
    scheduler = None
    if freeze is not None:
        ends = [lambda step: float(step < 2), lambda step: 1.0]
        scheduler = optim.lr_scheduler.LambdaLR(optimizer, ends, freeze_at_zero=freeze)
    return train.Trainer(
        model, optimizer, loader, scheduler=scheduler, comm=comm, verbose=False, **options
    )


def fitted(comm=None, freeze=None, **options):
    trainer = build(comm, freeze, **options)
    trainer.fit(2)
    return [host(x).copy() for x in trainer.model.state_dict().values()]


def test_two_ranks_train_several_optimizers_as_one_process_does_in_two_micro_batches():
    first, second = run(2, fitted)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    for a, b in zip(first, fitted(micro_batches=2), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    whole = fitted()  # batch normalisation of the whole batch
    assert any(np.abs(a - b).max() > 1e-2 for a, b in zip(first, whole, strict=True))


def test_two_ranks_freeze_a_group_and_end_with_the_same_parameters():
    def program(comm):
        return [fitted(comm, freeze) for freeze in (False, True)]

    for trained, frozen in run(2, program):
        assert all(np.array_equal(a, b) for a, b in zip(trained, frozen, strict=True))
    trainer = build(freeze=True)
    trainer.fit(1)
    assert trainer.step > 2
    assert [p.requires_grad for p in trainer.model.parameters()] == [
        p.ndim > 1 for p in trainer.model.parameters()
    ]


def test_a_rank_has_no_micro_batches():
    def program(comm):
        with pytest.raises(ArgumentError, match="micro_batches=2 with comm: a process has a part"):
            build(comm, micro_batches=2)

    run(2, program)
