"""`gpucnn kernels`: list the CUDA kernels, or export those of a model as files.

kernel_export.py writes the files and describes their format.
"""

import argparse

from gpucnn import cuda
from gpucnn.commands.arguments import Commands, add_model, model_and_batch, progress_bar
from gpucnn.commands.kernel_export import export_kernels
from gpucnn.cuda.declarations import callers
from gpucnn.errors import ArgumentError


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser(
        "kernels",
        help="list the CUDA kernels, or export them",
        description="List the CUDA kernels: name, source file and line, and the modules that "
        "launch each.  --export writes the kernels that a model trains with as files: source, PTX, "
        "cubin, and a manifest with every launch.  --export needs NVRTC, but no GPU.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--export", metavar="DIR", help="write the kernels to DIR, a new or empty folder"
    )
    parser.add_argument(
        "--arch",
        type=_architecture,
        nargs="+",
        metavar="N",
        help="for --export: compute capabilities times ten, such as 80 90 (default: 80)",
    )
    add_model(parser, "for --export: ")


def _architecture(text: str) -> int:
    return int(text.removeprefix("sm_"))


def run(arguments: argparse.Namespace) -> int:
    if arguments.export is not None:
        return _export(arguments)
    if (arguments.arch, arguments.model, arguments.batch) != (None, None, None):
        raise ArgumentError("kernels: --arch, --model and --batch need --export DIR")
    _print_table()
    return 0


def _print_table() -> None:
    rows = [
        (name, f"kernels/{kernel.file}:{kernel.line}", ", ".join(callers(name)))
        for name, kernel in cuda.kernels().items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for name, location, modules in rows:
        print(f"{name:<{widths[0]}}  {location:<{widths[1]}}  {modules}")


def _export(arguments: argparse.Namespace) -> int:
    model, batch = model_and_batch(arguments)
    architectures = list(dict.fromkeys(arguments.arch or [80]))
    manifest = export_kernels(model, architectures, arguments.export, batch, progress_bar)
    names = ", ".join(f"sm_{number}" for number in architectures)
    counts = ", ".join(f"{phase}: {count}" for phase, count in manifest["launches"].items())
    print(
        f"{arguments.export}: {len(manifest['entries'])} kernels of {model} for {names}, "
        f"batch {batch} (launches: {counts})"
    )
    return 0
