"""Top-k accuracy, the confusion matrix, precision and recall: by hand, and against PyTorch."""

import numpy as np
import pytest
from devices import tensor
from trainers import build

import gpucnn
from gpucnn import data, nn, ops, train
from gpucnn.errors import ArgumentError, DeviceMismatch, DtypeError, ShapeError

# Four images, three classes: predicted are 0, 2, 1, 2.
LOGITS = [[3.0, 1.0, 2.0], [0.0, 1.0, 5.0], [1.0, 4.0, 2.0], [2.0, 0.0, 3.0]]
LABELS = [0, 1, 1, 0]
CONFUSION = [[1, 0, 1], [0, 1, 1], [0, 0, 0]]


def on(device):
    return tensor(np.float32(LOGITS), device), tensor(np.array(LABELS), device)


def test_top_k_by_hand(device):
    logits, labels = on(device)
    assert [train.top_k_accuracy(logits, labels, k) for k in (1, 2, 3)] == [0.5, 1.0, 1.0]


def test_the_confusion_matrix_by_hand_from_logits_and_from_predictions(device):
    logits, labels = on(device)
    found = train.confusion_matrix(logits, labels)
    assert found.tolist() == CONFUSION
    assert found.dtype == np.int64
    guesses = tensor(np.array([0, 2, 1, 2]), device)
    assert train.confusion_matrix(guesses, labels).tolist() == CONFUSION
    wider = train.confusion_matrix(guesses, labels, classes=5)
    assert wider.shape == (5, 5)
    assert wider[:3, :3].tolist() == CONFUSION


def test_precision_and_recall_by_hand(device):
    scores = train.precision_recall(*on(device))
    nan = float("nan")
    assert scores.precision.tolist() == [1.0, 1.0, 0.0]
    np.testing.assert_equal(scores.recall, [0.5, 0.5, nan])  # class 2 has no image
    np.testing.assert_allclose(scores.f1, [2 / 3, 2 / 3, 0.0])
    assert scores.support.tolist() == [2, 2, 0]


def test_a_score_of_nothing_is_nan():
    scores = train.precision_recall([0, 1], [0, 1], classes=3)
    for values in (scores.precision, scores.recall, scores.f1):
        np.testing.assert_equal(values, [1.0, 1.0, np.nan])


@pytest.mark.usefixtures("current")
def test_arrays_of_the_device_are_taken_as_they_are(device):
    logits, labels = (x.data for x in on(device))
    assert train.top_k_accuracy(logits, labels, 1) == 0.5
    assert train.confusion_matrix(logits, labels).tolist() == CONFUSION


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_top_k_is_that_of_pytorch(device, k, rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    logits, labels = rng.standard_normal((257, 10), np.float32), rng.integers(0, 10, 257)
    best = torch.from_numpy(logits).topk(k, dim=1).indices
    expected = (best == torch.from_numpy(labels)[:, None]).any(dim=1).double().mean().item()
    found = train.top_k_accuracy(tensor(logits, device), tensor(labels, device), k)
    assert found == pytest.approx(expected, abs=1e-12)


def test_on_a_tie_the_smaller_index_comes_first(device):
    logits = tensor(np.zeros((4, 4), np.float32), device)
    labels = tensor(np.arange(4), device)
    assert [train.top_k_accuracy(logits, labels, k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
    assert train.confusion_matrix(logits, labels)[:, 0].tolist() == [1, 1, 1, 1]


def test_nan_is_the_largest_logit(device):
    logits = np.zeros((2, 3), np.float32)
    logits[:, 2] = np.nan
    labels = tensor(np.array([0, 2]), device)
    assert train.top_k_accuracy(tensor(logits, device), labels, 1) == 0.5


def test_no_images_have_no_accuracy():
    empty = np.zeros((0, 3), np.float32), np.zeros(0, np.int64)
    assert np.isnan(train.top_k_accuracy(*empty, 1))
    assert train.confusion_matrix(*empty).tolist() == [[0] * 3] * 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: train.top_k_accuracy(LOGITS, LABELS, 4), ArgumentError, r"k must be in 1\.\.3"),
        (lambda: train.top_k_accuracy(LOGITS, LABELS, 0), ArgumentError, r"k must be in 1\.\.3"),
        (lambda: train.top_k_accuracy([0, 1], [0, 1], 1), ShapeError, r"logits \(N, K\), got \(2,"),
        (lambda: train.top_k_accuracy(LOGITS, [0, 1, 2, 3], 1), ArgumentError, "from 0 to 3"),
        (lambda: train.confusion_matrix(LOGITS, [0, -1, 0, 0]), ArgumentError, "from -1 to 0"),
        (lambda: train.confusion_matrix([0, 7], [0, 1], 3), ArgumentError, "predictions must be"),
        (lambda: train.confusion_matrix(LOGITS, LABELS, 4), ArgumentError, "have 3 classes"),
        (lambda: train.confusion_matrix(LOGITS, LABELS[:2]), ShapeError, r"\(4, 3\) and \(2,\)"),
        (lambda: train.confusion_matrix([0.5], [0]), DtypeError, "integer predictions"),
        (lambda: train.confusion_matrix(LOGITS, [0.0] * 4), DtypeError, "integer labels"),
    ],
)
def test_a_mistake_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_arrays_on_two_devices_are_refused(gpu):
    with pytest.raises(DeviceMismatch, match=r"the logits are on .*, the labels on cpu"):
        train.top_k_accuracy(on(gpu)[0], np.array(LABELS), 1)


# --- the table ---


def test_the_table_has_names_counts_recall_and_precision():
    table = train.confusion_table(np.array(CONFUSION), ["cat", "dog", "elephant"])
    assert table.splitlines() == [
        "true         cat    dog elepha  recall",
        "cat            1      .      1     50%",
        "dog            .      1      1     50%",
        "elephant       .      .      .       -",
        "precision   100%   100%     0%",
    ]


def test_a_table_too_wide_for_the_terminal_lists_the_most_frequent_confusions():
    confusion = np.diag(np.full(200, 5))
    confusion[3, 4], confusion[7, 1] = 2, 3
    assert train.confusion_table(confusion).splitlines() == [
        "the most frequent confusions (true -> predicted):",
        "     3 of      8  7 -> 1",
        "     2 of      7  3 -> 4",
    ]


def test_names_cannot_send_commands_to_the_terminal():
    assert "\x1b" not in train.confusion_table(np.eye(2, dtype=int), ["\x1b[2J", "b"])


def test_a_table_of_other_names_or_shapes_is_refused():
    with pytest.raises(ArgumentError, match="expected 2 names of classes, got 1"):
        train.confusion_table(np.eye(2, dtype=int), ["a"])
    with pytest.raises(ShapeError, match=r"\(K, K\), got \(2, 3\)"):
        train.confusion_table(np.zeros((2, 3), int))


# --- evaluate ---


def evaluated(device, **options):
    gpucnn.manual_seed(0)
    images = data.Synthetic(n=20)
    normalize = data.Normalize(*data.channel_statistics(images.images))
    loader = data.DataLoader(images, 8, transform=normalize, device=device)  # 8, 8 and 4 images
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).to(device)
    whole = gpucnn.tensor(normalize(images.images), device=device)
    with gpucnn.no_grad():
        logits = model(whole)
    return train.evaluate(model, loader, **options), logits, tensor(images.labels, device)


def test_evaluate_means_a_metric_over_the_images_not_the_batches(device):
    metrics = {
        "top3": lambda logits, labels: train.top_k_accuracy(logits, labels, 3),
        "own": ops.cross_entropy,  # a Tensor on the device
    }
    result, logits, labels = evaluated(device, metrics=metrics)
    assert result.metrics["top3"] == pytest.approx(train.top_k_accuracy(logits, labels, 3))
    assert result.metrics["own"] == pytest.approx(result.loss, rel=1e-6)
    assert result.confusion.tolist() == train.confusion_matrix(logits, labels).tolist()
    np.testing.assert_equal(vars(result.class_scores), vars(train.precision_recall(logits, labels)))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([abs], "expected metrics as {name: function}, got a list of 1"),
        ({"accuracy": abs}, "'accuracy' cannot name a metric"),
        ({"top5": 5}, "the metric top5 is an int; expected a function"),
        ({"logits": lambda x, y: x}, "the metric logits returned .*; expected a number"),
        ({"none": lambda x, y: None}, "the metric none returned None; expected a number"),
    ],
)
def test_a_metric_that_is_none_is_named(metrics, message):
    with pytest.raises(ArgumentError, match=message):
        evaluated("cpu", metrics=metrics)


def test_test_metrics_are_in_the_history_and_the_checkpoints(device, tmp_path):
    metrics = {"top3": lambda logits, labels: train.top_k_accuracy(logits, labels, 3)}
    files = train.MetricsFile(tmp_path / "metrics.csv")
    trainer = build(device=device, test_metrics=metrics, callbacks=[files])
    row = trainer.fit(1)[0]
    assert row["test_top3"] == trainer.evaluation.metrics["top3"] > 0
    trainer.save(tmp_path / "run.safetensors")
    assert train.read_checkpoint(tmp_path / "run.safetensors").info["history"] == [row]
    header, line = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header.endswith(",step_ms,test_top3")
    assert float(line.rpartition(",")[2]) == row["test_top3"]


def test_test_metrics_without_a_test_set_are_refused():
    with pytest.raises(ArgumentError, match="test_metrics needs a test_loader"):
        build(test=False, test_metrics={"own": ops.cross_entropy})
