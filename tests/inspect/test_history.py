import numpy as np
import pytest

from gpucnn import data, inspect, nn, optim, train
from gpucnn.errors import ArgumentError, DataError


def row(epoch, **more):
    return {
        "epoch": epoch,
        "train_loss": 2.0 / epoch,
        "train_accuracy": 0.1 * epoch,
        "test_loss": None,
        "test_accuracy": None,
        **more,
    }


@pytest.fixture
def trainer():
    training = data.Synthetic(n=48)
    normalize = data.Normalize(*data.channel_statistics(training.images))
    loader = data.DataLoader(training, 16, transform=normalize, device="cpu")
    model = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 10))
    return train.Trainer(model, optim.SGD(model.parameters(), 0.01), loader, loader)


def test_curves_are_the_columns_of_a_history_and_missing_values_are_nan():
    curves = inspect.training_curves([row(1), row(2, test_loss=0.5)])
    assert curves["epoch"].tolist() == [1, 2]
    assert curves["train_loss"].tolist() == [2, 1]
    np.testing.assert_array_equal(curves["test_loss"], [np.nan, 0.5])


def test_curves_from_the_file_are_those_of_the_trainer(trainer, tmp_path):
    trainer.callbacks = [train.MetricsFile(tmp_path / "metrics.csv")]
    trainer.fit(2)
    for theme in ("light", "dark"):
        read = inspect.training_curves(tmp_path / "metrics.csv", tmp_path / f"{theme}.png", theme)
    direct = inspect.training_curves(trainer.history)
    assert read.keys() == direct.keys()
    for name, values in read.items():
        np.testing.assert_array_equal(values, direct[name])
    assert (tmp_path / "light.png").read_bytes() != (tmp_path / "dark.png").read_bytes()


def test_files_without_a_history_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        inspect.training_curves(tmp_path / "missing.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"not the metrics\.csv"):
        inspect.training_curves(tmp_path / "other.csv")
    with pytest.raises(ArgumentError, match="at least one finished epoch"):
        inspect.training_curves([])


def test_update_ratios_equal_those_of_gradient_descent_computed_by_hand(trainer):
    watch = inspect.UpdateRatios()
    seen = []

    class ByHand(train.Callback):
        def on_batch_end(self, trainer):
            w = trainer.model[0].weight
            before = w.data + 0.01 * w.grad
            seen.append(0.01 * np.linalg.norm(w.grad) / np.linalg.norm(before))

    trainer.callbacks = [watch, ByHand()]
    trainer.fit(1)
    assert list(watch.ratios) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    np.testing.assert_allclose(watch.ratios["0.weight"], seen, rtol=1e-3)
    assert watch.ratios["0.bias"][0] == float("inf")  # biases start at zero
    assert len(watch.ratios["3.bias"]) == 3


def test_the_ratio_of_a_parameter_that_stays_is_zero():
    zero, three = np.zeros(3), np.full(3, 3.0)
    assert inspect.update_ratio(three, three) == 0
    assert inspect.update_ratio(zero, zero) == 0
    assert inspect.update_ratio(three, np.float64([3, 3, 6])) == pytest.approx(1 / np.sqrt(3))


def test_histograms_count_every_weight_and_leave_biases_out(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    found = inspect.weight_histograms(model, bins=7, path=tmp_path / "w.png")
    assert list(found) == ["0.weight", "3.weight"]
    counts, edges = found["0.weight"]
    assert counts.sum() == 8 * 27
    assert len(counts) == 7
    assert edges[0] == pytest.approx(model[0].weight.data.min())
    assert edges[-1] == pytest.approx(model[0].weight.data.max())
    assert (tmp_path / "w.png").exists()


def test_ratio_histograms_share_edges_and_exclude_zero_and_infinity(tmp_path):
    ratios = {"a": [0.002, 0.02, 0.05, 0.0, float("inf")], "b": [float("inf")], "c": [0.5]}
    found = inspect.update_ratio_histograms(ratios, bins=3, path=tmp_path / "r.png")
    assert [counts.tolist() for counts, _ in found.values()] == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]
    for _, edges in found.values():
        np.testing.assert_array_equal(edges, [-3, -2, -1, 0])
    _, edges = inspect.update_ratio_histograms({"a": [0.001]}, bins=1)["a"]
    assert edges.tolist() == [-3, -2]
    assert inspect.update_ratio_histograms({"a": []})["a"][0].sum() == 0
    with pytest.raises(ArgumentError, match="at least one parameter to draw"):
        inspect.update_ratio_histograms({}, path=tmp_path / "none.png")
    for histograms, argument in (
        (inspect.update_ratio_histograms, ratios),
        (inspect.weight_histograms, nn.ReLU()),
    ):
        with pytest.raises(ArgumentError, match="bins must be at least 1"):
            histograms(argument, bins=0)
