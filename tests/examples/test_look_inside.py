import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scripts import load_script

import gpucnn
from gpucnn import data, models, nn, ops, optim, train, weights

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def script():
    return load_script(EXAMPLES / "look_inside.py")


def tiny(classes=10, generator=None):
    """A network with every part of AlexNet, a thousandth of its size."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=2, generator=generator), nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, generator=generator), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(54, classes, generator=generator),
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run of `tiny` in a folder, recorded as train_alexnet_cifar10.py does."""
    folder = tmp_path_factory.mktemp("run")
    training, test = data.Synthetic(n=64), data.Synthetic(train=False, n=40)
    mean, std = data.channel_statistics(training.images)
    normalize = data.Normalize(mean, std)
    model = tiny()
    settings = {
        "model": "tiny",
        "dataset": "synthetic",
        "optimizer": "sgd",
        "schedule": "constant",
        "lr": 0.02,
        "batch_size": 16,
    }
    trainer = train.Trainer(
        model,
        optim.SGD(model.parameters(), 0.02, momentum=0.9),
        data.DataLoader(training, 16, transform=normalize, device="cpu"),
        data.DataLoader(test, 40, transform=normalize, device="cpu"),
        info={
            "model": {"name": "tiny", "config": {}},
            "classes": list(training.classes),
            "normalize": {"mean": list(mean), "std": list(std)},
            "script": "train_alexnet_cifar10",
            "settings": settings,
        },
    )
    trainer.fit(2)
    trainer.save(folder / "best.safetensors")
    return folder / "best.safetensors"


@pytest.fixture(scope="module")
def page(script, checkpoint):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.BY_NAME, "tiny", tiny)
        assert script.main([str(checkpoint), "--limit", "30", "--steps", "2"]) == 0
    return checkpoint.with_name("look_inside.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Record headings, images and open tags; an end tag must close the tag opened last."""

    VOID = {"meta", "img", "source", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.headings, self.images, self.alts = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        for name in ("src", "srcset", "href"):
            if name in attributes:
                self.images.append(attributes[name])
        if tag == "img":
            self.alts.append(attributes.get("alt"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "h2":
            self.headings.append(text)


@pytest.fixture(scope="module")
def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_has_every_section(read):
    assert read.headings == [
        "How well it does",
        "Worst mistakes",
        "Filters and feature maps",
        "Where it looks",
        "What excites a channel",
        "Synthesized images",
        "Weights",
        "The network",
    ]


def test_every_picture_is_an_embedded_png_with_alt_text(read):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    assert len(read.images) > 50
    for source in read.images:
        kind, encoded = source.split(",", 1)
        assert kind == "data:image/png;base64"
        with image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as file:
            file.verify()
    assert all(read.alts)


def test_the_page_loads_nothing_from_the_network(page):
    text = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert "//" not in text
    assert "<script" not in text
    assert "<link" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_the_page_has_both_themes(page):
    assert page.count('media="(prefers-color-scheme: dark)"') == 4  # the charts
    assert "@media (prefers-color-scheme: dark)" in page
    assert "color-scheme: light dark" in page


def test_the_numbers_on_the_page_are_the_models(script, checkpoint, page):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.BY_NAME, "tiny", tiny)
        saved = train.read_checkpoint(checkpoint)
        model = gpucnn.load(checkpoint)
    test = data.Synthetic(train=False).take(30)
    loader = data.DataLoader(
        test, 30, transform=data.Normalize(**saved.info["normalize"]), device="cpu"
    )
    result = train.evaluate(model, loader)
    assert f"<dd>{result.accuracy:.1%}</dd>" in page
    assert f"<dd>{result.loss:.3f} nats</dd>" in page
    assert f"<dd>{sum(p.size for p in model.parameters()):,}</dd>" in page
    assert 'data-name="multiply-adds">58,800<' in page  # 14 x 14 x 4 x 75
    assert "2: no window sees the last 1 row and the last 1 column of its 14 x 14" in page


def test_the_update_ratios_equal_those_of_the_runs_next_steps(script, checkpoint):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.BY_NAME, "tiny", tiny)
        saved = train.read_checkpoint(checkpoint)
        one, other = (gpucnn.load(checkpoint) for _ in range(2))
    images = data.Synthetic(n=64)
    one[6].p = other[6].p = 0  # otherwise the two draw different dropout masks
    ratios = script.update_ratios(saved, one, images, steps=3)
    assert list(ratios) == ["0.weight", "2.weight", "7.weight"]
    assert {len(values) for values in ratios.values()} == {3}

    x = gpucnn.tensor(data.Normalize(**saved.info["normalize"])(images.images[:16]))
    ops.cross_entropy(other.train()(x), images.labels[:16]).backward()
    w = other[0].weight  # the first parameter: its velocity stands first in the flat buffer
    velocity = saved.tensors["optimizer.velocity"][: w.size].reshape(w.shape)
    step = 0.002 * (0.9 * velocity + w.grad)
    expected = np.linalg.norm(step) / np.linalg.norm(w.data)
    assert ratios["0.weight"][0] == pytest.approx(expected, rel=1e-4)


def test_a_run_that_diverges_when_continued_has_no_update_ratios(script, checkpoint):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.BY_NAME, "tiny", tiny)
        saved, model = train.read_checkpoint(checkpoint), gpucnn.load(checkpoint)
    saved.info["settings"]["lr"] = 1e30
    with np.errstate(all="ignore"):
        assert script.update_ratios(saved, model, data.Synthetic(n=64), steps=3) == {}


@pytest.mark.slow
def test_the_newest_run_is_the_default_and_out_may_be_elsewhere(
    script, checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(models.BY_NAME, "tiny", tiny)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "best.safetensors").write_bytes(checkpoint.read_bytes())
    assert script.main(["--limit", "12", "--steps", "1", "--out", "page.html"]) == 0
    assert capsys.readouterr().out.startswith("page.html: ")
    assert (tmp_path / "page.html").stat().st_size > 10_000


@pytest.mark.slow
def test_without_a_run_it_takes_the_network_that_comes_with_gpucnn(
    script, tmp_path, monkeypatch, capsys
):
    drawn = data.Synthetic(train=False, n=8)
    classes = weights.info("speedrun_cifar10")["classes"]
    images = data.Dataset(drawn.images, drawn.labels, classes, "CIFAR-10 test")
    monkeypatch.setattr(script, "load_data", lambda info, root: (images, images))
    monkeypatch.chdir(tmp_path)
    assert script.main(["--limit", "8"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("look_inside.html: ")
    assert "runs/ has no run: this is speedrun_cifar10, which comes with gpucnn" in err
    page = (tmp_path / "look_inside.html").read_text(encoding="utf-8")
    assert "Inside speedrun_cifar10, trained on cifar10" in page


@pytest.mark.slow
def test_a_page_that_cannot_be_written_is_named(script, checkpoint, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(models.BY_NAME, "tiny", tiny)
    flags = ["--limit", "12", "--steps", "1", "--out", str(tmp_path / "no folder" / "page.html")]
    assert script.main([str(checkpoint), *flags]) == 2
    assert "page.html cannot be written (No such file or directory)" in capsys.readouterr().err


def test_mistakes_end_in_two_lines_and_status_two(script, checkpoint, tmp_path, capsys):
    assert script.main([str(tmp_path / "none.safetensors")]) == 2
    assert "there is no such file" in capsys.readouterr().err
    train.write_checkpoint(
        tmp_path / "bare.safetensors", {"model.weight": np.zeros(1)}, {"model": {"name": "tiny"}}
    )
    assert script.main([str(tmp_path / "bare.safetensors")]) == 2
    assert "'tiny' is unknown" in capsys.readouterr().err
    assert script.main([str(checkpoint)]) == 2  # only the tests register `tiny`
    assert "'tiny' is unknown" in capsys.readouterr().err


def test_a_data_set_of_other_classes_than_the_runs_is_refused(
    script, checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(models.BY_NAME, "tiny", tiny)
    saved = train.read_checkpoint(checkpoint)
    info = {**saved.info, "classes": ["cat", "dog"]}
    del info["format"]
    train.write_checkpoint(tmp_path / "other.safetensors", saved.tensors, info)
    assert script.main([str(tmp_path / "other.safetensors")]) == 2
    assert "has the classes cat, dog" in capsys.readouterr().err


# --- hostile names ---

EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(1) style='x' a='$&lt;"
FILE = EVIL.replace("/", "\\")


class Hostile(nn.Module):
    """A network whose layers have hostile names, and are printed with one."""

    def __init__(self, generator=None):
        super().__init__()
        setattr(self, EVIL, nn.Conv2d(3, 4, 5, stride=2))
        setattr(self, f"{EVIL} 2", type(EVIL, (nn.ReLU,), {})())
        setattr(self, f"{EVIL} 3", nn.Linear(784, 10))

    def forward(self, x):
        first, second, last = (module for _, module in self.named_children())
        return last(ops.flatten(second(first(x))))


def test_hostile_names_stay_text(script, page, tmp_path, monkeypatch):
    classes = tuple(f"{EVIL} {i}" for i in range(10))
    training, test = data.Synthetic(n=32), data.Synthetic(train=False, n=30)
    training, test = (
        data.Dataset(s.images, s.labels, classes, f"{EVIL} data") for s in (training, test)
    )
    monkeypatch.setitem(models.BY_NAME, f"{EVIL} model", Hostile)
    monkeypatch.setattr(script, "load_data", lambda settings, root: (training, test))
    names = {name: f"{EVIL} {name}" for name in ("model", "dataset", "optimizer", "schedule")}
    model = Hostile()
    trainer = train.Trainer(
        model,
        optim.SGD(model.parameters(), 0.02),
        data.DataLoader(
            training, 16, transform=data.Normalize((0.5,) * 3, (0.2,) * 3), device="cpu"
        ),
        info={
            "model": {"name": f"{EVIL} model", "config": {}},
            "classes": list(classes),
            "normalize": {"mean": [0.5] * 3, "std": [0.2] * 3},
            "script": "train_alexnet_cifar10",
            "settings": {**names, "lr": 0.02, "batch_size": 16},
        },
    )
    trainer.fit(1)
    trainer.save(tmp_path / f"{FILE}.safetensors")
    flags = ["--limit", "30", "--steps", "1"]
    assert script.main([str(tmp_path / f"{FILE}.safetensors"), *flags]) == 0
    found = (tmp_path / "look_inside.html").read_text(encoding="utf-8")
    hostile, benign = Structure.of(found), Structure.of(page)
    assert hostile.elements <= benign.elements
    for name in (f"{EVIL} model", names["dataset"], names["optimizer"], names["schedule"]):
        assert name in hostile.text
    for name in (f"{EVIL} 3", f"Layer {EVIL} 2", f"{classes[1]}, ", f"{FILE}.safetensors"):
        assert name in hostile.text
    assert f"synthesized for {classes[9]}" in hostile.values


class Structure(HTMLParser):
    """The elements of a page, with the names of their attributes, and its text."""

    @classmethod
    def of(cls, page):
        structure = cls()
        structure.elements, structure.values, structure.text = set(), set(), ""
        structure.feed(page)
        structure.close()
        return structure

    def handle_starttag(self, tag, attributes):
        self.elements.add((tag, *(name for name, _ in attributes)))
        self.values |= {value for _, value in attributes}

    def handle_data(self, text):
        self.text += text


@pytest.mark.slow
def test_it_looks_inside_what_the_training_script_wrote(script, tmp_path):
    out = tmp_path / "run"
    trained = load_script(EXAMPLES / "train_alexnet_cifar10.py").main(
        f"--dataset synthetic --limit 32 --epochs 1 --batch-size 16 --quiet --out {out}".split()
    )
    assert trained == 0
    assert script.main([str(out / "best.safetensors"), "--limit", "20", "--steps", "1"]) == 0
    assert "Inside alexnet_cifar10, trained on synthetic" in (out / "look_inside.html").read_text()
