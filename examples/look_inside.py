"""Look inside a trained network: one HTML page from a checkpoint of train_alexnet_cifar10.py.

    python examples/look_inside.py runs/RUN/best.safetensors   # writes look_inside.html beside it
    python examples/look_inside.py                             # the newest run's best checkpoint

The page is self-contained: images are embedded, and light or dark mode follows the system.
"""

import argparse
import html
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn
from gpucnn import data, inspect, nn, optim, train
from gpucnn.arguments import exit_status, positive_int
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, DataError, DivergenceError
from gpucnn.files import write_whole
from gpucnn.inspect import draw, page
from gpucnn.train.run_folder import newest_run, read_run

SCRIPT = "train_alexnet_cifar10"  # the script that wrote the run
CHANNELS = 32  # feature maps shown per layer
CLASSES = 20  # synthesize images for at most this many classes


@dataclass
class Subject:
    """A model and its predictions for some test images."""

    checkpoint: train.Checkpoint
    model: nn.Module
    classes: list[str]
    pictures: np.ndarray  # uint8 (N, H, W, C)
    images: np.ndarray  # the same, normalised
    predictions: inspect.Predictions

    def tell(self, i: int) -> str:
        """The class of image i and, if it differs, the predicted one, as HTML text."""
        true, predicted = int(self.predictions.labels[i]), int(self.predictions.predicted[i])
        probability = f"{self.predictions.probabilities[i, predicted]:.0%}"
        name = html.escape(self.classes[true])
        if true == predicted:
            return f"{name}, {probability}"
        return f"{name}, taken for {html.escape(self.classes[predicted])}, {probability}"

    def show(self, i: int, caption: str | None = None) -> str:
        """Image i above a caption; the default is tell(i)."""
        return page.figure(page.pixels(self.pictures[i], "test image"), caption or self.tell(i))


# --- the sections ---


def head(subject: Subject, path: Path) -> str:
    info, result = subject.checkpoint.info, subject.predictions.evaluation
    settings = info["settings"]
    facts = {
        "test accuracy": f"{result.accuracy:.1%}",
        "test loss": f"{result.loss:.3f} nats",
        "test images": f"{len(subject.images):,}",
        "parameters": f"{sum(p.size for p in subject.model.parameters()):,}",
        "epochs, steps": f"{info['epoch']}, {info['step']:,}",
        "optimizer": f"{settings['optimizer']}, {settings['schedule']}, lr {settings['lr']}",
    }
    items = "".join(f"<div><dt>{k}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items())
    return (
        f"<h1>Inside {html.escape(settings['model'])}, trained on {settings['dataset']}</h1>"
        f'<p class="soft">{html.escape(path.name)}, gpucnn {gpucnn.__version__}</p><dl>{items}</dl>'
    )


def judgement(subject: Subject) -> str:
    history, confusion = (
        subject.checkpoint.info["history"],
        subject.predictions.evaluation.confusion,
    )
    cards = []
    if history:
        curves = page.chart(
            lambda file, theme: inspect.training_curves(history, file, theme),
            "loss and accuracy over the epochs",
        )
        cards.append(page.card("Training", curves))
    matrix = page.chart(
        lambda file, theme: inspect.confusion_chart(file, confusion, subject.classes, theme),
        "confusion matrix",
    )
    cards.append(page.card("Confusion matrix", matrix))
    text = "The rows of the confusion matrix are true classes, the columns predictions."
    return page.section("How well it does", text, cards)


def mistakes(subject: Subject) -> str:
    worst = subject.predictions.worst(24)
    shown = [subject.show(i) for i in worst]
    text = (
        "The misclassified test images, those with the least likely true class first."
        if shown
        else "The network classifies all of these images correctly."
    )
    return page.section(
        "Worst mistakes", text, [page.card("", page.gallery(shown))] if shown else []
    )


def architecture(subject: Subject) -> str:
    settings = subject.checkpoint.info["settings"]
    states = {"sgd": 1}.get(settings["optimizer"], 2)
    shape = subject.images.shape[1:]
    found = inspect.analyze(subject.model, shape, settings["batch_size"], states)
    memory = found.memory
    text = (
        f"{found.summary.parameters:,} parameters, {found.summary.trainable:,} of them trainable; "
        f"{found.summary.multiply_adds:,} multiply-adds per image. "
    )
    if memory is not None:
        parts = ("parameters", "optimizer", "images", "activations", "gradients", "work")
        shares = ", ".join(f"{part} {getattr(memory, part) / 2**20:,.1f}" for part in parts)
        text += (
            f"Predicted memory for training on batches of {memory.batch_size}: "
            f"{memory.peak / 2**20:,.1f} MiB ({shares})."
        )
    cards = [page.card("Layers, for one image", page.layers(found))]
    return page.section("The network", text, cards)


def features(subject: Subject, layers: list[str]) -> str:
    cards = []
    try:
        filters = inspect.first_layer_filters(subject.model)
    except ArgumentError:
        filters = None
    if filters is not None:
        tiles = inspect.filter_pictures(filters)[:128]
        shown = page.pixels(draw.tile(tiles, 8), "filters")
        cards.append(page.card("Filters of the first convolution", shown))
    chosen = subject.predictions.surest(1)
    for name in layers:
        maps = inspect.feature_maps(subject.model, subject.images[chosen], name)[0]
        shades = draw.heatmap(maps.transpose(2, 0, 1)[:CHANNELS])
        size = " × ".join(map(str, maps.shape))
        shown = page.pixels(draw.tile(shades, 8), f"maps of layer {name}")
        cards.append(page.card(f"Layer {name}, {size}", shown))
    shown = page.row([subject.show(chosen[0])], 2)
    cards.insert(1, page.card("The input image", shown))
    text = (
        "The weights of the first convolution, and the feature maps of each layer for one test "
        f"image: the first {CHANNELS} channels, bright where the activation is large."
    )
    return page.section("Filters and feature maps", text, cards)


def where(subject: Subject, layers: list[str]) -> str:
    chosen = np.unique(
        np.concatenate([subject.predictions.surest(4), subject.predictions.worst(4)])
    )
    images, pictures = subject.images[chosen], draw.pictures(subject.pictures[chosen])
    size = images.shape[1:3]
    window = max(1, min(size) // 5)
    columns = {
        "image": pictures,
        "gradient": draw.heatmap(inspect.saliency(subject.model, images)),
        "covered": draw.heatmap(
            inspect.occlusion(subject.model, images, window, max(1, window // 2)), symmetric=True
        ),
    }
    if layers:
        maps = inspect.grad_cam(subject.model, images, layers[-1])
        columns["Grad-CAM"] = draw.overlay(pictures, maps)
    cards = []
    for at, i in enumerate(chosen):
        shown = (page.figure(page.pixels(c[at], name), name) for name, c in columns.items())
        cards.append(page.card(subject.tell(i), page.row(shown, len(columns))))
    text = (
        "Which pixels determine the predicted class. Gradient: how much each pixel changes the "
        "score (Simonyan et al. 2014). Covered: how much the score drops when a square of "
        f"{window} x {window} pixels is covered; blue where it rises (Zeiler and Fergus 2014). "
        "Grad-CAM: where the features of the last layer with spatial output support the class "
        "(Selvaraju et al. 2017)."
    )
    return page.section("Where it looks", text, cards)


def excitement(subject: Subject, layers: list[str], count: int = 6, k: int = 7) -> str:
    cards = []
    for name in layers[-1:]:
        every = range(inspect.feature_maps(subject.model, subject.images[:1], name).shape[3])
        best = inspect.strongest_images(subject.model, subject.images, name, every, k)
        channels = [int(c) for c in np.argsort(-best.values[:, 0], kind="stable")[:count]]
        made = _synthesize(
            subject, inspect.before_relu(subject.model, subject.images[:1], name), channels
        )
        for at, channel in enumerate(channels):
            tiles = [page.pixels(made[at], f"synthesized for channel {channel}", "px first")]
            tiles += [page.pixels(subject.pictures[i], "test image") for i in best.images[channel]]
            cards.append(page.card(f"Layer {name}, channel {channel}", page.row(tiles, 4)))
    text = (
        "First, framed, an image synthesized from noise to excite a channel (Erhan et al. 2009), "
        "then the test images that excite it most. Shown are the layer's most active channels."
    )
    return page.section("What excites a channel", text, cards)


def _synthesize(subject: Subject, layer: str, channels: list[int]) -> np.ndarray:
    shape = subject.images.shape[1:]
    return draw.pictures(
        draw.clip_outliers(inspect.maximize_activation(subject.model, layer, channels, shape, 60))
    )


def dreams(subject: Subject, layers: list[str]) -> str:
    classes = subject.classes[:CLASSES]
    last = [name for name, m in subject.model.named_modules() if isinstance(m, nn.Linear)]
    cards = []
    if last:
        made = _synthesize(subject, last[-1], list(range(len(classes))))
        shown = (
            page.figure(page.pixels(image, f"synthesized for {name}"), html.escape(name))
            for image, name in zip(made, classes, strict=True)
        )
        cards.append(page.card("An image for each class", page.gallery(shown)))
    chosen = subject.predictions.surest(1)
    shown = [subject.show(chosen[0], "the image")]
    for name in dict.fromkeys((*layers[len(layers) // 2 :][:1], *layers[-1:])):
        dream = draw.pictures(inspect.deep_dream(subject.model, subject.images[chosen], name))
        shown.append(page.figure(page.pixels(dream[0], "dream"), f"dream of layer {name}"))
    cards.append(page.card("Deep dream", page.row(shown, 3)))
    text = (
        "Gradient ascent on the image: from noise towards each class, and from a test image "
        "towards whatever a layer detects in it (Mordvintsev et al. 2015)."
    )
    return page.section("Synthesized images", text, cards)


def weights(subject: Subject, ratios: dict[str, list[float]]) -> str:
    spread = page.chart(
        lambda file, theme: inspect.weight_histograms(subject.model, path=file, theme=theme),
        "histograms of the weights",
    )
    cards = [page.card("Values of the weights", spread)]
    text = "Histograms of each layer's weights."
    if ratios:
        steps = len(next(iter(ratios.values())))
        updates = page.chart(
            lambda file, theme: inspect.update_ratio_histograms(ratios, path=file, theme=theme),
            "histograms of the update ratios",
        )
        cards.append(page.card("Relative size of the updates", updates))
        text += (
            " The relative size of an update is the norm of a weight's change over the norm of the "
            f"weight, measured in {steps} more steps with the run's optimizer at a tenth of its "
            "highest learning rate. Usual is -3, one thousandth."
        )
    return page.section("Weights", text, cards)


def update_ratios(
    checkpoint: train.Checkpoint, model: nn.Module, images: data.Dataset, steps: int
) -> dict[str, list[float]]:
    """Train `model`, a copy, for `steps` more steps; return each weight's update ratios.

    Empty if training diverges, because the ratios are meaningless then.
    """
    info = checkpoint.info
    settings = info["settings"]
    size = min(settings["batch_size"], 64)
    images = images.take(size * steps)
    kind = {"SGD": optim.SGD, "Adam": optim.Adam, "AdamW": optim.AdamW}[info["optimizer"]["name"]]
    optimizer = kind(model.parameters())
    optimizer.load_state_dict(info["optimizer"] | checkpoint.part("optimizer"))
    optimizer.lr = settings["lr"] / 10  # the peak rate is too high for a trained network
    normalize = data.Normalize(**info["normalize"])
    device = model.parameters()[0].device
    loader = data.DataLoader(
        images, size, drop_last=len(images) > size, transform=normalize, device=device
    )
    watch = inspect.UpdateRatios()
    try:
        train.Trainer(model, optimizer, loader, callbacks=[watch]).fit(1)
    except DivergenceError:
        return {}
    wanted = {name for name, p in model.named_parameters() if p.ndim >= 2}
    return {name: values for name, values in watch.ratios.items() if name in wanted}


# --- the page ---


def load_data(settings: dict[str, Any], root: str | None) -> tuple[data.Dataset, data.Dataset]:
    """The run's (training set, test set)."""
    if settings["dataset"] == "synthetic":
        return data.Synthetic(train=True), data.Synthetic(train=False)
    pair, reason = data.find_cifar10(root, download=False)
    if pair is None:
        raise DataError(f"the run's data set, CIFAR-10, was not found: {reason}")
    return pair


def report(subject: Subject, path: Path, ratios: dict[str, list[float]]) -> str:
    layers = inspect.pixel_layers(subject.model, subject.images[:1])
    parts = [
        head(subject, path),
        judgement(subject),
        mistakes(subject),
        features(subject, layers),
        where(subject, layers),
        excitement(subject, layers),
        dreams(subject, layers),
        weights(subject, ratios),
        architecture(subject),
    ]
    title = f"Inside {subject.checkpoint.info['settings']['model']}"
    return page.document(title, "".join(parts))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Look inside a trained network: one HTML page.")
    add = parser.add_argument
    text = "written by train_alexnet_cifar10.py (default: best.safetensors of the newest run)"
    add("checkpoint", nargs="?", type=Path, help=text)
    text = "output file (default: look_inside.html beside the checkpoint)"
    add("--out", type=Path, metavar="FILE", help=text)
    text = "number of test images (default: 500)"
    add("--limit", type=positive_int, metavar="N", default=500, help=text)
    text = "training steps for the update ratios (default: 10)"
    add("--steps", type=positive_int, metavar="N", default=10, help=text)
    add("--data", metavar="DIR", help="folder with CIFAR-10, as for training")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: auto)")
    add("--threads", type=positive_int, metavar="N", help="CPU threads (default: all cores)")
    return parser.parse_args(argv)


def run(argv: list[str] | None = None) -> None:
    options = parse_arguments(argv)
    if options.checkpoint is None:
        path, checkpoint = newest_run(SCRIPT, "best.safetensors")
    else:
        path, checkpoint = options.checkpoint, read_run(options.checkpoint, SCRIPT)
    out = options.out or path.with_name("look_inside.html")
    if options.threads is not None:
        gpucnn.set_num_threads(options.threads)
    device = Device.parse(options.device)
    training, test = load_data(checkpoint.info["settings"], options.data)
    classes = checkpoint.info["classes"]
    if classes != list(test.classes):
        raise DataError(
            f"{path} has the classes {', '.join(classes)}\n"
            f"  the data set here has {', '.join(test.classes)}; use the version of gpucnn that "
            "trained it, or train again"
        )
    test = test.take(options.limit)
    model = gpucnn.load(path, device)
    images = data.Normalize(**checkpoint.info["normalize"])(test.images)
    predictions = inspect.predict(model, images, test.labels)
    subject = Subject(checkpoint, model, classes, test.images, images, predictions)
    ratios = update_ratios(checkpoint, gpucnn.load(path, device), training, options.steps)
    written = report(subject, path, ratios)
    write_whole(out, written)
    print(f"{out}: {len(written) / 2**20:.1f} MiB, accuracy {predictions.evaluation.accuracy:.2%}")


def main(argv: list[str] | None = None) -> int:
    return exit_status(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
