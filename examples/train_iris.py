"""The lecture's two recap networks on a small real task: classify irises.

    python examples/train_iris.py

A flower is four numbers (length and width of sepal and petal).  The network 4-6-1 separates
virginica from the other two species; 4-6-6-6-6-3 predicts the species.  Each step uses all
training flowers.
"""

import csv
import sys
from pathlib import Path

import numpy as np

import gpucnn
from gpucnn import models, ops, optim


def load() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Measurements (150, 4), standardized per column; labels (150,); names of the species."""
    with open(Path(__file__).with_name("data") / "iris.csv", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    measurements = np.array([row[:4] for row in rows], dtype=np.float32)
    species = tuple(dict.fromkeys(row[4] for row in rows))
    labels = np.array([species.index(row[4]) for row in rows])
    return (measurements - measurements.mean(0)) / measurements.std(0), labels, species


def split(labels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the test flowers: 35 and 15 of each species."""
    generator = np.random.default_rng(seed)
    order = [generator.permutation(np.flatnonzero(labels == k)) for k in np.unique(labels)]
    return np.concatenate([o[:35] for o in order]), np.concatenate([o[35:] for o in order])


def is_virginica(steps: int = 300) -> float:
    """Train 4-6-1; return its accuracy on the test flowers, 0 to 1."""
    x, labels, species = load()
    target = (labels == species.index("virginica")).astype(np.float32)[:, None]
    training, test = split(labels)
    model = models.mlp([4, 6, 1], activation="tanh", generator=np.random.default_rng(1))
    optimizer = optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(steps):
        probability = ops.sigmoid(model(gpucnn.tensor(x[training])))
        loss = ops.mse_loss(probability, target[training])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    guess = model(gpucnn.tensor(x[test])).numpy() > 0  # sigmoid(0) is one half
    return float((guess == target[test]).mean())


def which_species(steps: int = 300) -> float:
    """Train 4-6-6-6-6-3; return its accuracy on the test flowers, 0 to 1."""
    x, labels, _ = load()
    training, test = split(labels)
    model = models.mlp([4, 6, 6, 6, 6, 3], activation="tanh", generator=np.random.default_rng(1))
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        loss = ops.cross_entropy(model(gpucnn.tensor(x[training])), labels[training])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    guess = model(gpucnn.tensor(x[test])).argmax(axis=1)
    return float((guess == labels[test]).mean())


def main() -> int:
    print(f"4-6-1, virginica or not:      {is_virginica():.1%} of 45 test flowers right")
    print(f"4-6-6-6-6-3, which of three:  {which_species():.1%} of 45 test flowers right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
