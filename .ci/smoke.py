"""Smoke test of an installed wheel; run it outside the checkout, beside cifar10_test_images.png."""

import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

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
gpucnn.save("model.safetensors", model, "alexnet_cifar10")
assert (gpucnn.load("model.safetensors")[0].weight.data == model[0].weight.data).all()
print(f"one training step from {where}: loss {loss.item():.3f}")

# Pictures of 640 x 640 pixels from three test images of CIFAR-10, and the weights in the wheel
strip = Image.open("cifar10_test_images.png")
pictures = ["deer.jpg", "ship.jpg", "dog.jpg"]
for i, name in enumerate(pictures):
    strip.crop((32 * i, 0, 32 * (i + 1), 32)).resize((640, 640)).save(name, quality=90)
start = time.perf_counter()
command = [sys.executable, "-m", "gpucnn", "predict", "--top", "1", *pictures]
done = subprocess.run(command, capture_output=True, text=True, check=True)
seconds = time.perf_counter() - start
guessed = [line.split()[0] for line in done.stdout.splitlines()[1::2]]
assert guessed == ["deer", "ship", "dog"], done.stdout + done.stderr
print(f"gpucnn predict: three pictures right in {seconds:.1f} s")
