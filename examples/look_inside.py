"""Look inside a trained network: one HTML page from a checkpoint.

    python examples/look_inside.py runs/RUN/best.safetensors   # writes look_inside.html beside it
    python examples/look_inside.py                             # newest run, else gpucnn's weights
    python examples/look_inside.py FILE --data photos/test     # on a folder of images per class

It takes runs of the training scripts, and with --data any convolutional network of gpucnn.models.
The page is self-contained: images are embedded, and light or dark mode follows the system.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import gpucnn
from gpucnn import data, inspect, nn, optim, train
from gpucnn.arguments import exit_status, positive_int
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, CheckpointError, DataError, DivergenceError
from gpucnn.files import write_whole
from gpucnn.inspect import draw, page
from gpucnn.inspect.page import Html, element, join
from gpucnn.train.run_data import load_data, spread
from gpucnn.train.run_folder import newest_run

DEFAULT = gpucnn.weights.DEFAULT
LARGE = 64  # pixels a side: larger images take long, so fewer are used
CHANNELS = 32  # feature maps shown per layer
CLASSES = 20  # synthesize images for at most this many classes


@dataclass
class Subject:
    """A model and its predictions for some test images."""

    checkpoint: train.Checkpoint
    model: nn.Module
    classes: list[str]
    pictures: np.ndarray  # uint8 (N, H, W, 3), for the page
    images: np.ndarray  # (N, H, W, C), the same, normalised
    predictions: inspect.Predictions

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run; empty if the checkpoint holds only a model."""
        return self.checkpoint.info.get("settings", {})

    def tell(self, i: int) -> str:
        """The class of image i and, if it differs, the predicted one."""
        true, predicted = int(self.predictions.labels[i]), int(self.predictions.predicted[i])
        probability = f"{self.predictions.probabilities[i, predicted]:.0%}"
        name = self.classes[true]
        if true == predicted:
            return f"{name}, {probability}"
        return f"{name}, taken for {self.classes[predicted]}, {probability}"

    def show(self, i: int, caption: str | None = None) -> Html:
        """Image i above a caption; the default is tell(i)."""
        return page.figure(page.pixels(self.pictures[i], "test image"), caption or self.tell(i))


# --- the sections ---


def head(subject: Subject, path: Path) -> Html:
    info, settings = subject.checkpoint.info, subject.settings
    result = subject.predictions.evaluation
    facts = {
        "test accuracy": f"{result.accuracy:.1%}",
        "test loss": f"{result.loss:.3f} nats",
        "test images": f"{len(subject.images):,}",
        "parameters": f"{sum(p.size for p in subject.model.parameters()):,}",
    }
    if "epoch" in info:
        facts["epochs, steps"] = f"{info['epoch']}, {info['step']:,}"
    if "optimizer" in settings:
        facts["optimizer"] = "{optimizer}, {schedule}, lr {lr}".format(**settings)
    items = (element("div", element("dt", k), element("dd", value)) for k, value in facts.items())
    title = f"Inside {info['model']['name']}"
    if "dataset" in settings:
        title += f", trained on {settings['dataset']}"
    source = f"{path.name}, gpucnn {gpucnn.__version__}"
    return join([element("h1", title), element("p", source, class_="soft"), element("dl", *items)])


def judgement(subject: Subject) -> Html:
    history = subject.checkpoint.info.get("history")
    confusion = subject.predictions.evaluation.confusion
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


def mistakes(subject: Subject) -> Html:
    worst = subject.predictions.worst(24)
    shown = [subject.show(i) for i in worst]
    if not shown:
        return page.section("Worst mistakes", "All of these images are classified correctly.", [])
    text = "The misclassified test images, those with the least likely true class first."
    return page.section("Worst mistakes", text, [page.card("", page.gallery(shown))])


def architecture(subject: Subject) -> Html:
    settings = subject.settings
    states = 1 if settings.get("optimizer", "sgd") == "sgd" else 2
    shape, batch_size = subject.images.shape[1:], settings.get("batch_size", 128)
    precision = settings.get("precision")
    found = inspect.analyze(subject.model, shape, batch_size, states, precision)
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


def features(subject: Subject, layers: list[str]) -> Html:
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


def where(subject: Subject, layers: list[str]) -> Html:
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


def excitement(subject: Subject, layers: list[str], count: int = 6, k: int = 7) -> Html:
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


def dreams(subject: Subject, layers: list[str]) -> Html:
    classes = subject.classes[:CLASSES]
    last = [name for name, m in subject.model.named_modules() if isinstance(m, nn.Linear)]
    cards = []
    if last:
        made = _synthesize(subject, last[-1], list(range(len(classes))))
        shown = (
            page.figure(page.pixels(image, f"synthesized for {name}"), name)
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


def weights(subject: Subject, ratios: dict[str, list[float]]) -> Html:
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

    Empty for a checkpoint that is no run of a script, and if training diverges.
    """
    info = checkpoint.info
    settings = info.get("settings", {})
    kinds = {"SGD": optim.SGD, "Adam": optim.Adam, "AdamW": optim.AdamW}
    kind = kinds.get(info.get("optimizer", {}).get("name"))
    if kind is None or not {"batch_size", "lr"} <= settings.keys():
        return {}
    size = min(settings["batch_size"], 64 if images.images.shape[1] <= LARGE else 8)
    images = images.take(size * steps)
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
        train.Trainer(model, optimizer, loader, callbacks=[watch], verbose=False).fit(1)
    except DivergenceError:
        return {}
    wanted = {name for name, p in model.named_parameters() if p.ndim >= 2}
    return {name: values for name, values in watch.ratios.items() if name in wanted}


# --- the page ---


def report(subject: Subject, path: Path, ratios: dict[str, list[float]], bar: Any) -> str:
    layers = inspect.pixel_layers(subject.model, subject.images[:1])
    parts: dict[str, Callable[[], Html]] = {
        "summary": lambda: head(subject, path),
        "curves and confusion": lambda: judgement(subject),
        "mistakes": lambda: mistakes(subject),
        "features": lambda: features(subject, layers),
        "saliency": lambda: where(subject, layers),
        "exciting images": lambda: excitement(subject, layers),
        "synthesized images": lambda: dreams(subject, layers),
        "weights": lambda: weights(subject, ratios),
        "layers": lambda: architecture(subject),
    }
    done = []
    bar.total += len(parts)
    for name, part in parts.items():
        bar.set_description_str(name)
        done.append(part())
        bar.update()
    return page.document(f"Inside {subject.checkpoint.info['model']['name']}", join(done))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Look inside a trained network: one HTML page.")
    add = parser.add_argument
    text = f"of any convolutional network (default: the newest run's best; without runs {DEFAULT})"
    add("checkpoint", nargs="?", type=Path, help=text)
    text = "output file (default: look_inside.html beside the run's checkpoint, else here)"
    add("--out", type=Path, metavar="FILE", help=text)
    text = f"number of test images (default: 500, or 100 of more than {LARGE} pixels a side)"
    add("--limit", type=positive_int, metavar="N", help=text)
    text = "training steps for the update ratios (default: 10)"
    add("--steps", type=positive_int, metavar="N", default=10, help=text)
    add("--data", metavar="DIR", help="the run's data, or a folder with a directory per class")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: auto)")
    add("--threads", type=positive_int, metavar="N", help="CPU threads (default: all cores)")
    return parser.parse_args(argv)


def choose(path: Path | None) -> tuple[Path, train.Checkpoint]:
    """The checkpoint at `path`; for None the newest run's, else the one that comes with gpucnn."""
    if path is None:
        try:
            return newest_run(None, "best.safetensors")
        except CheckpointError:
            path = gpucnn.weights.path(DEFAULT)
            print(f"runs/ has no run: this is {DEFAULT}, which comes with gpucnn", file=sys.stderr)
    return path, train.read_checkpoint(path)


def run(argv: list[str] | None = None) -> None:
    options = parse_arguments(argv)
    path, checkpoint = choose(options.checkpoint)
    here = path.parent == gpucnn.weights.path(DEFAULT).parent
    out = options.out or Path("look_inside.html" if here else path.with_name("look_inside.html"))
    if options.threads is not None:
        gpucnn.set_num_threads(options.threads)
    info, device = checkpoint.info, Device.parse(options.device)
    model = gpucnn.load(path, device)
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        raise ArgumentError(
            f"{path}: {info['model']['name']} has no convolution, so there are no feature maps\n"
            "  name a checkpoint of a convolutional network"
        )
    classes, normalize = info["classes"], data.Normalize(**info["normalize"])
    training, test = load_data(info, options.data)
    if classes != list(test.classes):
        raise DataError(
            f"{path} has the classes {', '.join(classes)}\n"
            f"  the data here has {', '.join(test.classes)}; name the run's data, or train again"
        )
    large = test.images.shape[1] > LARGE
    test = spread(test, options.limit or (100 if large else 500))
    seen = sys.stderr is not None and sys.stderr.isatty()
    with tqdm(total=2, desc="predictions", leave=False, disable=not seen) as bar:
        images = normalize(test.images)
        predictions = inspect.predict(model, images, test.labels, 32 if large else 256)
        pictures = np.repeat(test.images, 3 if test.images.shape[3] == 1 else 1, axis=3)
        subject = Subject(checkpoint, model, classes, pictures, images, predictions)
        bar.update()
        bar.set_description_str("updates")
        ratios = update_ratios(checkpoint, gpucnn.load(path, device), training, options.steps)
        bar.update()
        written = report(subject, path, ratios, bar)
    write_whole(out, written)
    print(f"{out}: {len(written) / 2**20:.1f} MiB, accuracy {predictions.evaluation.accuracy:.2%}")


def main(argv: list[str] | None = None) -> int:
    return exit_status(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
