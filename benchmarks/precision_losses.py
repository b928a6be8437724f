"""Show what the precision of products does to the losses of the first steps.

    python benchmarks/precision_losses.py                       alexnet_cifar10 on cudasim: minutes
    python benchmarks/precision_losses.py --model resnet18_cifar
    python benchmarks/precision_losses.py --device cuda --batch 128 --steps 50

Every run trains the same network on the same images of drawn shapes.  Beside the device stands the
CPU, where bf16 and fp16 round the same operands and results and compute in float32: what is left
between the two is the order of the sums, and operands that it moves to the next number.  TF32 cuts
off digits: an operand loses 1/2800 on average, at most 1/1000, a layer's output twice as much.
"""

import argparse
from typing import Any

import numpy as np

import gpucnn
from gpucnn import data, models, optim, train

MODELS = ("alexnet_cifar10", "resnet18_cifar", "speedrun_cifar10")
RUNS = [(precision, True) for precision in ("fp32", "tf32", "bf16", "fp16")]
RUNS += [(precision, False) for precision in ("fp32", "bf16", "fp16")]  # on the CPU


class Losses(train.Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.of_step: list[Any] = []

    def on_batch_end(self, trainer: train.Trainer) -> None:
        self.of_step.append(float(trainer.metrics.last_loss))


def losses(name: str, device: str, precision: str, batch: int, steps: int) -> list[float]:
    """The losses of a run from seed 0."""
    gpucnn.manual_seed(0)
    model = models.build(name).to(device)
    images = data.Synthetic(n=batch * steps)
    normalize = data.Normalize(*data.channel_statistics(images.images))
    loader = data.DataLoader(images, batch, transform=normalize, device=device)
    optimizer = optim.SGD(model.parameters(), lr=0.0002, momentum=0.9)
    found = Losses()
    trainer = train.Trainer(
        model, optimizer, loader, callbacks=[found], precision=precision, verbose=False
    )
    trainer.fit(1)
    return found.of_step


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--device", default="cudasim")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args(argv)

    titles = [f"{precision} {given.device if there else 'cpu'}" for precision, there in RUNS]
    columns = [
        losses(given.model, given.device if there else "cpu", precision, given.batch, given.steps)
        for precision, there in RUNS
    ]
    print(f"{given.model}, batch {given.batch}: the loss of each step")
    print(f"| step | {' | '.join(titles)} |")
    print(f"|---|{'---|' * len(titles)}")
    for step, row in enumerate(zip(*columns, strict=True), start=1):
        print(f"| {step} | {' | '.join(f'{loss:.5f}' for loss in row)} |")
    table = np.array(columns)
    away = [
        np.abs(values - table[0 if there else len(table) - 3]).max()
        for values, (_, there) in zip(table, RUNS, strict=True)
    ]
    print(f"| furthest from fp32 | {' | '.join(f'{x:.1e}' for x in away)} |")


if __name__ == "__main__":
    main()
