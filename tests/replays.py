"""Trainers whose steps can be replayed as a graph, and everything that their steps change."""

import numpy as np

import gpucnn
from gpucnn import cuda, data, nn, optim, train
from gpucnn.device import to_host
from gpucnn.optim.lr_scheduler import LambdaLR
from gpucnn.train.random_state import generator_state
from gpucnn.train.replay import generators_of

BATCH, BATCHES = 4, 6  # an epoch: five whole batches, and one of two images


def network(*more):
    generator = np.random.Generator(np.random.Philox(3))
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.3),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Dropout(0.2, generator),
        *more,
        nn.AvgPool2d(4),
        nn.Flatten(),
    )


def dataset():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (BATCH * (BATCHES - 1) + 2, 8, 8, 3), dtype=np.uint8)
    return data.Dataset(images, rng.integers(0, 6, len(images)), tuple("abcdef"))


def on_the_host(images, generator):
    """A transform that only the host can do."""
    return (images.astype(np.float32) / 127 - 1) * generator.uniform(0.9, 1.1)


ON_DEVICE = data.Compose(
    [data.RandomCrop(8, 1), data.RandomHorizontalFlip(), data.Normalize((0.5,) * 3, (0.3,) * 3)]
)
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}


def build(device, graph=True, model=None, make=optim.SGD, transform=ON_DEVICE, **options):
    """A Trainer whose learning rate changes in every step."""
    gpucnn.manual_seed(0)
    model = (model if isinstance(model, nn.Module) else (model or network)()).to(device)
    settings = options.pop("settings", SGD if make is optim.SGD else {"lr": 0.01})
    loader = data.DataLoader(dataset(), BATCH, shuffle=True, transform=transform, device=device)
    optimizer = make(options.pop("params", lambda m: m.parameters())(model), **settings)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + 0.3 * step))
    return train.Trainer(model, optimizer, loader, None, scheduler, graph=graph, **options)


def state(trainer):
    """Everything that a step changes, on the host."""
    optimizer = {k: v for k, v in trainer.optimizer.state_dict().items() if k != "param_groups"}
    arrays = {**trainer.model.state_dict(), **optimizer}
    return {
        **{key: np.array(to_host(x)) if hasattr(x, "dtype") else x for key, x in arrays.items()},
        "losses": [row["train_loss"] for row in trainer.history],
        "metrics": list(trainer.metrics.state_dict().values()),
        "step": trainer.step,
        "generators": str([generator_state(g) for g in generators_of(trainer.model).values()]),
    }


def differences(a, b):
    """The names of what differs."""
    assert a.keys() == b.keys()
    return [key for key in a if np.asarray(a[key]).tobytes() != np.asarray(b[key]).tobytes()]


def batches(trainer, number):
    """`number` batches of the trainer's loader."""
    found = []
    while len(found) < number:
        found += list(trainer.loader)
    return found[:number]


def run_steps(trainer, number, after=lambda trainer: None):
    """Train on whole batches; the launches of each step, and after(trainer) after each."""
    counts = []
    whole = [b for b in batches(trainer, 2 * number) if len(b[1]) == BATCH][:number]
    trainer.model.train()
    for images, labels in whole:
        with cuda.count_launches() as launches:
            trainer.train_step(images, labels)
        counts.append(dict(launches))
        after(trainer)
    return counts


def replayed(counts):
    return [launches.get("graph", 0) for launches in counts]
