"""The command line: `gpucnn predict`, `convert`, `export`, `doctor`, `kernels`, `warmup`, `check`.

Each command is one function that adds its parser, and one that runs it.  A GpucnnError ends in its
text on standard error and exit status 2.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import gpucnn
from gpucnn import check, doctor, models
from gpucnn.arguments import positive_int
from gpucnn.convert import convert_file
from gpucnn.errors import ArgumentError, DataError, GpucnnError
from gpucnn.kernel_export import export_kernels
from gpucnn.kernel_source import callers, kernels
from gpucnn.onnx_export import export_onnx
from gpucnn.predict import Classifier, bars
from gpucnn.saved import described, rebuild
from gpucnn.train.checkpoint import read_checkpoint
from gpucnn.warmup import warm_up

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 something is broken, 2 a mistake in what was asked, 130 stopped."""
    parser = argparse.ArgumentParser(prog="gpucnn", description="Work with trained networks.")
    parser.add_argument("--version", action="version", version=f"gpucnn {gpucnn.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_predict, _add_convert, _add_export, _add_doctor, _add_kernels, _add_warmup):
        add(commands)
    check.add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except GpucnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read it has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to flush
        return 0
    return status


# --- predict ---


def _add_predict(commands: "Commands") -> None:
    parser = commands.add_parser(
        "predict",
        help="what a trained model sees in images",
        description="Print the likeliest classes of each image, with bars.",
    )
    parser.set_defaults(run=_predict)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="such as best.safetensors")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="an image file")
    parser.add_argument(
        "--top", type=positive_int, default=5, metavar="N", help="classes to print (default: 5)"
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the classes, one a line (default: those in the checkpoint)",
    )
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N (default: cpu)")


def _predict(arguments: argparse.Namespace) -> int:
    names = None if arguments.classes is None else _lines(Path(arguments.classes))
    classifier = Classifier(arguments.checkpoint, arguments.device, names)
    if not classifier.normalized:
        print(
            "note: the checkpoint has no normalisation; pixels are scaled to 0 ... 1",
            file=sys.stderr,
        )
    status = 0
    for path in arguments.images:
        try:
            text = bars(classifier.guesses(path, arguments.top))
        except DataError as error:  # one bad file does not keep the others from being seen
            print(f"error: {error}", file=sys.stderr)
            status = 2
            continue
        print(f"{path}\n{text}")
    return status


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--classes: {path} cannot be read ({error})") from error


# --- convert ---


def _add_convert(commands: "Commands") -> None:
    parser = commands.add_parser(
        "convert",
        help="torchvision's AlexNet to gpucnn's and back",
        description="Turn a state dict of torchvision's AlexNet (.safetensors, .pth or .pt) into "
        "a gpucnn checkpoint, or a checkpoint of alexnet_torchvision into such a state dict; "
        "which of the two, the source tells.",
    )
    parser.set_defaults(run=_convert)
    parser.add_argument("source", metavar="SOURCE", help="the file to read")
    parser.add_argument("target", metavar="TARGET", help="the file to write")


def _convert(arguments: argparse.Namespace) -> int:
    print(convert_file(arguments.source, arguments.target))
    return 0


# --- export ---


def _add_export(commands: "Commands") -> None:
    parser = commands.add_parser(
        "export",
        help="a checkpoint as an ONNX file",
        description="Write the model of a checkpoint as an ONNX file.  Its input is float32 "
        "(N, H, W, C), normalised; names and normalisation are in the file's metadata.",
    )
    parser.set_defaults(run=_export)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="such as best.safetensors")
    parser.add_argument("target", metavar="TARGET", help="the .onnx file to write")


def _export(arguments: argparse.Namespace) -> int:
    saved = read_checkpoint(arguments.checkpoint)
    name, config = described(saved, arguments.checkpoint)
    model = rebuild(saved, arguments.checkpoint)
    shape = models.input_shape(name, **config)
    metadata: dict[str, str] = {
        key: json.dumps(saved.info[key]) for key in ("classes", "normalize") if key in saved.info
    }
    export_onnx(model, arguments.target, shape, metadata)
    print(f"{arguments.target}: {name}, input (N, {', '.join(map(str, shape))})")
    return 0


# --- doctor ---


def _add_doctor(commands: "Commands") -> None:
    parser = commands.add_parser(
        "doctor",
        help="what this machine can run gpucnn on",
        description="Look at CuPy, the driver, NVRTC, the compiler for cudasim and the data; each "
        "finding with its remedy.  Exit status 1 if something is broken.",
    )
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    findings = doctor.examine()
    print(*findings, sep="\n")
    return int(any(finding.state == "fault" for finding in findings))


# --- kernels ---


def _add_kernels(commands: "Commands") -> None:
    parser = commands.add_parser(
        "kernels",
        help="every CUDA kernel, where it is and who calls it",
        description="A table of the CUDA kernels: name, file and line, and who launches it.  With "
        "--export, those that a model trains with as files: source, PTX, cubin, and a manifest "
        "with every launch.  It needs NVRTC and no GPU.",
    )
    parser.set_defaults(run=_kernels)
    parser.add_argument("--export", metavar="DIR", help="write them to DIR, new or empty")
    parser.add_argument(
        "--arch",
        type=_architecture,
        nargs="+",
        metavar="N",
        help="for --export: compute capabilities times ten, such as 80 90 (default: 80)",
    )
    _add_model(parser, "for --export: ")


def _add_model(parser: argparse.ArgumentParser, when: str = "") -> None:
    parser.add_argument(
        "--model",
        metavar="NAME",
        help=f"{when}the model, by its name in gpucnn.models (default: alexnet_cifar10)",
    )
    parser.add_argument(
        "--batch",
        type=positive_int,
        metavar="N",
        help=f"{when}images in a batch (default: 128)",
    )


def _model_and_batch(arguments: argparse.Namespace) -> tuple[str, int]:
    return arguments.model or "alexnet_cifar10", arguments.batch or 128


def _architecture(text: str) -> int:
    return int(text.removeprefix("sm_"))


def _kernels(arguments: argparse.Namespace) -> int:
    if arguments.export is not None:
        return _export_kernels(arguments)
    if (arguments.arch, arguments.model, arguments.batch) != (None, None, None):
        raise ArgumentError("kernels: --arch, --model and --batch go with --export DIR")
    rows = [
        (name, f"kernels/{kernel.file}:{kernel.line}", ", ".join(callers(name)))
        for name, kernel in kernels().items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for name, place, who in rows:
        print(f"{name:<{widths[0]}}  {place:<{widths[1]}}  {who}")
    return 0


def _export_kernels(arguments: argparse.Namespace) -> int:
    model, batch = _model_and_batch(arguments)
    architectures = list(dict.fromkeys(arguments.arch or [80]))
    manifest = export_kernels(model, architectures, arguments.export, batch, _bar)
    names = ", ".join(f"sm_{number}" for number in architectures)
    counts = ", ".join(f"{phase}: {count}" for phase, count in manifest["launches"].items())
    print(
        f"{arguments.export}: {len(manifest['entries'])} kernels of {model} for {names}, "
        f"batch {batch} (launches: {counts})"
    )
    return 0


def _bar(work: list[Any]) -> Any:
    """Goes through `work` under a progress bar, where somebody sees it."""
    return tqdm(work, "compiling", disable=None, leave=False)


# --- warmup ---


def _add_warmup(commands: "Commands") -> None:
    parser = commands.add_parser(
        "warmup",
        help="compile a model's kernels ahead",
        description="Compile what training and inference of a model launch, and keep it on disk, "
        "so that the first step need not wait.",
    )
    parser.set_defaults(run=_warmup)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cudasim (default: cuda)")
    _add_model(parser)


def _warmup(arguments: argparse.Namespace) -> int:
    model, batch = _model_and_batch(arguments)
    compiled, cached = warm_up(model, arguments.device, batch, _bar)
    for word, found in (("compiled", compiled), ("cached", cached)):
        for file, seconds in found:
            print(f"{word:<8}  {file:<28}  {seconds:6.2f} s")
    print(f"{model} on {arguments.device}: {len(compiled)} compiled, {len(cached)} were cached")
    return 0


if __name__ == "__main__":
    sys.exit(main())
