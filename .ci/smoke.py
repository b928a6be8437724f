"""Smoke test of an installed wheel; run it outside the checkout."""

from importlib.resources import files
from pathlib import Path

import numpy as np

import gpucnn
from gpucnn import data, models, ops, optim

where = Path(gpucnn.__file__).parent
assert "site-packages" in where.parts, f"gpucnn came from {where}, not from the wheel"
assert (where / "py.typed").is_file(), "py.typed is not in the wheel"
assert files("gpucnn.kernels").joinpath("__init__.py").is_file(), "kernels/ is not in the wheel"

images = data.Synthetic(n=16)
model = models.alexnet_cifar10()
optimizer = optim.SGD(model.parameters(), 0.001, momentum=0.9)
before = model[0].weight.data.copy()
x = gpucnn.tensor(images.images.astype(np.float32) / 255)
loss = ops.cross_entropy(model(x), images.labels)
loss.backward()
optimizer.step()
assert np.isfinite(loss.item())
assert (model[0].weight.data != before).any()
print(f"one training step from {where}: loss {loss.item():.3f}")
