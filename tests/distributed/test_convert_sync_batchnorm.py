"""convert_sync_batchnorm: batch norms replaced in place, with all that belongs to them."""

import copy
from collections import deque, namedtuple

import numpy as np
import pytest
from fake_ranks import run

import gpucnn
from gpucnn import nn
from gpucnn.distributed import SyncBatchNorm, convert_sync_batchnorm
from gpucnn.errors import ArgumentError

Pair = namedtuple("Pair", "first second")


class Holder(nn.Module):
    """Batch norms in every kind of container, one of them under two names."""

    def __init__(self):
        shared = nn.BatchNorm1d(2)
        self.layer = shared
        self.again = [shared, {"deep": (nn.ReLU(), nn.BatchNorm2d(3))}]
        self.pair = Pair(nn.BatchNorm1d(4), "text")
        self.queue = deque([nn.BatchNorm1d(5), 7])
        self.by_name = {"a": nn.BatchNorm1d(6), 1: "one"}
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(7))])
        self.plain = (1, [2, 3])


def test_every_batch_norm_in_any_container_is_replaced_with_its_names_and_tensors():
    model = Holder()
    model.pair[0].eval()
    model.queue[0].weight.requires_grad = False
    names = list(model.named_modules(remove_duplicate=False))
    tensors = [*model.named_parameters(), *model.named_buffers()]
    plain, comm = model.plain, run(1, lambda comm: comm)[0]
    assert convert_sync_batchnorm(model, comm) is model
    after = list(model.named_modules(remove_duplicate=False))
    assert [name for name, _ in after] == [name for name, _ in names]
    for (_, module), (_, before) in zip(after, names, strict=True):
        if isinstance(before, nn.BatchNorm1d | nn.BatchNorm2d):
            assert type(module) is SyncBatchNorm
            assert module.comm is comm
            assert (module.training, module.num_features) == (before.training, before.num_features)
        else:
            assert module is before
    for (name, value), (old, same) in zip(
        [*model.named_parameters(), *model.named_buffers()], tensors, strict=True
    ):
        assert (name, id(value)) == (old, id(same))
    assert model.layer is model.again[0]
    assert type(model.pair) is Pair
    assert model.pair.second == "text"
    assert model.plain is plain
    assert not model.pair.first.training
    assert model.queue[1] == 7


def test_hooks_stay_and_can_be_removed():
    model, seen = nn.Sequential(nn.BatchNorm1d(3)), []
    handle = model[0].register_forward_hook(lambda module, inputs, y: seen.append(type(module)))
    convert_sync_batchnorm(model, run(1, lambda comm: comm)[0])
    x = gpucnn.tensor(np.eye(3, dtype=np.float32))
    model(x)
    handle.remove()
    model(x)
    assert seen == [SyncBatchNorm]


def test_a_copy_of_a_model_has_its_own_tensors_and_the_same_ranks():
    comm = run(1, lambda comm: comm)[0]
    model = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3)), comm)
    other = copy.deepcopy(model)
    assert other[0].comm is comm
    assert other[0].weight is not model[0].weight


def test_a_model_that_is_a_batch_norm_is_returned_converted():
    comm, other = run(2, lambda comm: comm)
    layer = nn.BatchNorm2d(3)
    converted = convert_sync_batchnorm(layer, comm)
    assert type(converted) is SyncBatchNorm
    assert converted.weight is layer.weight
    assert convert_sync_batchnorm(converted, other).comm is other


def test_a_subclass_is_refused_and_the_model_keeps_its_layers():
    class Own(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.BatchNorm2d(3), Own(3))
    comm = run(1, lambda comm: comm)[0]
    with pytest.raises(ArgumentError, match="1 is a Own\n"):
        convert_sync_batchnorm(model, comm)
    assert type(model[0]) is nn.BatchNorm2d
    with pytest.raises(ArgumentError, match="got a Linear"):
        SyncBatchNorm(nn.Linear(2, 3), comm)
    with pytest.raises(ArgumentError, match="SyncBatchNorm: expected a Communicator, got an int"):
        convert_sync_batchnorm(nn.BatchNorm2d(3), 2)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5)
    )


def test_checkpoints_of_both_kinds_fit_each_other(tmp_path):
    comm = run(1, lambda comm: comm)[0]
    for number, (first, second) in enumerate(((False, True), (True, False))):
        source, target = network(), network()
        for model, convert in ((source, first), (target, second)):
            if convert:
                assert convert_sync_batchnorm(model, comm) is model
        for _, buffer in source.named_buffers():
            buffer.data[...] = 3
        path = tmp_path / f"{number}.safetensors"
        gpucnn.save(path, source)
        gpucnn.load(path, target)
        assert list(source.state_dict()) == list(target.state_dict())
        for name, array in source.state_dict().items():
            np.testing.assert_array_equal(target.state_dict()[name], array)
