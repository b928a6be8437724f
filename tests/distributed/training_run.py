"""A run of a Trainer on all ranks; rank 0 saves what it ends with.

    mpiexec -n 3 python -m mpi4py training_run.py '{"out": "a", "device": "cpu", ...}'

The folder `out` gets last.safetensors and history.json.  Every rank asserts that its state is
rank 0's.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np

import gpucnn
from gpucnn import data, nn, optim, train
from gpucnn.device import to_host
from gpucnn.distributed import MPICommunicator, convert_sync_batchnorm
from gpucnn.errors import TrainingWarning
from gpucnn.optim import lr_scheduler

IMAGES, BATCH = 50, 8  # the last batch has two images: fewer than four ranks


def main(
    out,
    device="cpu",
    epochs=2,
    resume=None,
    norm=None,
    grad_dtype=None,
    bad=None,
    width=4,
    own_generator=True,
    stop=None,
    graph=None,
):
    """norm: "rank", "sync" or None; bad: (rank, step) with NaN, which is skipped; stop: a step."""
    comm = MPICommunicator()
    gpucnn.manual_seed(comm.rank)  # fit starts from rank 0's state
    generator = np.random.default_rng(comm.rank) if own_generator else None
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2),
        nn.BatchNorm2d(width) if norm else nn.ReLU(),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.Dropout(0.3, generator),
        nn.Linear(25 * width, 10),
    ).to(device)
    if norm == "sync":
        convert_sync_batchnorm(model, comm)
    images = data.Synthetic(n=IMAGES, seed=1)
    normalize = data.Normalize(*data.channel_statistics(images.images))
    augment = data.Compose([data.RandomCrop(32, padding=2), data.RandomHorizontalFlip(), normalize])
    loader = data.DataLoader(images, BATCH, shuffle=True, transform=augment, device=device)
    test_loader = data.DataLoader(images, 25, transform=normalize, device=device)
    optimizer = optim.SGD(model.parameters(), 0.02, 0.9, nesterov=True)
    trainer = train.Trainer(
        model,
        optimizer,
        loader,
        test_loader,
        lr_scheduler.TriangularLR(optimizer, 3 * len(loader)),
        callbacks=[train.Checkpoints(out), StopAt(stop)],
        on_nan="skip" if bad else "stop",
        comm=comm,
        grad_dtype=grad_dtype,
        graph=graph,
    )
    if bad:
        poison(trainer, *bad)
    if resume:
        trainer.resume(resume)
    try:
        trainer.fit(epochs - trainer.epoch)
    except KeyboardInterrupt:
        assert trainer.step == stop + 1  # agreed on before the next step
    if comm.rank == 0:
        captured = trainer._guard.graph._captured
        replays = captured.replays if captured is not None else 0
        found = {"history": trainer.history, "skipped": trainer.skipped, "replays": replays}
        text = json.dumps(found)
        (Path(out) / "history.json").write_text(text)
    state = {k: to_host(x).tobytes() for k, x in model.state_dict().items()}
    for rank, other in enumerate(comm.gather((state, trainer.step, trainer.skipped))):
        assert other == (state, trainer.step, trainer.skipped), f"rank {rank} differs"


class StopAt(train.Callback):
    def __init__(self, step):
        self.step = step

    def on_batch_end(self, trainer):
        if trainer.step == self.step:
            trainer.stop()


def poison(trainer, rank, step):
    """NaN in the images of that rank's part in that step."""
    warnings.simplefilter("ignore", TrainingWarning)
    train_step = trainer.train_step

    def with_nan(images, labels):
        if (trainer.ranks.rank, trainer.step) == (rank, step):
            images.data[0] = np.nan
        train_step(images, labels)

    trainer.train_step = with_nan


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
