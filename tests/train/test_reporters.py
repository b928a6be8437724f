"""What a Trainer prints unless it is told not to."""

import sys

import pytest
from trainers import build, network

from gpucnn import data, optim, train


def test_a_trainer_prints_a_line_for_each_epoch(capsys):
    build().fit(2)
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert "test loss" in out
    assert err == ""  # no bar, because this is no terminal


def test_verbose_false_prints_nothing(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    build(verbose=False).fit(1)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar_too(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    build().fit(1)
    out, err = capsys.readouterr()
    assert "epoch 1/1" in err
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize("own", [train.EpochLine, train.ProgressBar])
def test_ones_own_line_or_bar_replaces_the_default(own, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    mine = own()
    kinds = [type(callback) for callback in build(callbacks=[mine]).callbacks]
    assert sorted(kinds, key=str) == [train.EpochLine, train.ProgressBar]
    assert mine in build(callbacks=[mine]).callbacks


def test_other_callbacks_do_not_silence_it(capsys, tmp_path):
    build(callbacks=[train.MetricsFile(tmp_path / "metrics.csv")]).fit(1)
    assert capsys.readouterr().out.startswith("epoch 1/1  train loss")


def test_it_works_with_a_plain_list_of_batches_and_without_standard_error(capsys, monkeypatch):
    images = data.Synthetic(n=8)
    normalize = data.Normalize(*data.channel_statistics(images.images))
    batches = list(data.DataLoader(images, 4, transform=normalize, device="cpu"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    model = network()
    train.Trainer(model, optim.SGD(model.parameters()), batches).fit(1)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert err == ""
    monkeypatch.setattr(sys, "stderr", None)
    train.Trainer(model, optim.SGD(model.parameters()), batches).fit(1)
    assert len(capsys.readouterr().out.splitlines()) == 1
