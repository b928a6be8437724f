"""Watching a run of several ranks: rank 0 writes, all stop, metrics are those of all images."""

import json

import pytest
from fake_ranks import run
from trainers import build, network

import gpucnn
from gpucnn import train


def seeded():
    """Equal networks; the threads share the default generator, so they are built before."""
    models = []
    for _ in range(3):
        gpucnn.manual_seed(0)
        models.append(network())
    return models


def test_early_stopping_ends_all_ranks_after_the_same_epoch():
    def program(comm):
        stopping = train.EarlyStopping("train_loss", patience=1, min_delta=100.0)
        callbacks = [stopping] if comm.rank == 0 else []
        trainer = build(callbacks=callbacks, comm=comm)
        trainer.fit(6)
        return trainer.epoch

    assert run(2, program) == [2, 2]


def test_the_test_metrics_are_those_of_one_process():
    metrics = {"top3": lambda logits, labels: train.top_k_accuracy(logits, labels, 3)}
    models = seeded()

    def measured(comm, model):
        return build(comm=comm, model=model, test_metrics=metrics).fit(1)[0]["test_top3"]

    alone = measured(None, models[2])
    assert run(2, lambda comm: measured(comm, models[comm.rank])) == pytest.approx([alone, alone])


@pytest.mark.parametrize("device", ["cpu", "cudasim"])
def test_rank_0_alone_logs_the_loss_and_gradients_of_the_whole_batch(device, tmp_path, compiler):
    models = seeded()

    def logged(comm, model, name):
        callbacks = [train.JSONLines(tmp_path / name, every=1), train.GradientNorm()]
        build(comm=comm, model=model, callbacks=callbacks, device=device).fit(1)

    run(2, lambda comm: logged(comm, models[comm.rank], f"rank {comm.rank}"))
    logged(None, models[2], "alone")
    found, alone = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("rank 0", "alone")
    )
    assert len(found) == len(alone) == 5
    for one, other in zip(found, alone, strict=True):
        for key in {"loss", "grad_norm", "train_loss"} & one.keys():
            assert one[key] == pytest.approx(other[key], rel=1e-4)
    assert not (tmp_path / "rank 1").exists()
