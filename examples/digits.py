"""Handwritten digits: build a network, train it, test it, and plot the curves to digits.png."""

from pathlib import Path

import numpy as np

from gpucnn import data, errors, inspect, nn, optim, train

table = np.loadtxt(Path(__file__).parent / "data" / "digits.csv.gz", np.int64, delimiter=",")
np.random.default_rng(0).shuffle(table)
images = (table[:, :64] * 15).astype(np.uint8).reshape(-1, 8, 8, 1)
digits = data.Dataset(images, table[:, 64], tuple("0123456789"), "digits")
training, test = digits[:1400], digits[1400:]
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding="same"), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding="same"), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(128, 10),
)  # fmt: skip
normalize = data.Normalize(*data.channel_statistics(training.images))
loader = data.DataLoader(training, 32, shuffle=True, transform=normalize, device="cpu")
test_loader = data.DataLoader(test, 500, transform=normalize, device="cpu")
optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
rates = optim.lr_scheduler.TriangularLR(optimizer, total_steps=8 * len(loader))
trainer = train.Trainer(model, optimizer, loader, test_loader, rates)
trainer.fit(epochs=8)
print(f"{trainer.evaluation.accuracy:.1%} of {len(test)} digits right")
try:
    inspect.training_curves(trainer.history, "digits.png")
except errors.MissingExtra as error:
    print(f"digits.png was not drawn: {error}")
