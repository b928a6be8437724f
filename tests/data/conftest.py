from dataclasses import replace

import pytest
from official_files import COUNT, images_and_labels, python2_pickle, python_batch

from gpucnn.data import cifar


@pytest.fixture
def small(monkeypatch):
    """Make the readers expect COUNT images in each CIFAR file."""
    for name in ("_CIFAR10", "_CIFAR100"):
        versions = tuple(replace(v, images_per_file=(COUNT, COUNT)) for v in getattr(cifar, name))
        monkeypatch.setattr(cifar, name, versions)


@pytest.fixture
def cifar10_python(tmp_path, small):
    """tmp_path with cifar-10-batches-py, and its contents {file: (images, labels)}."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    truth = {}
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        truth[name] = images_and_labels(COUNT, 10, i)
        (folder / name).write_bytes(python2_pickle(python_batch(*truth[name])))
    return tmp_path, truth
