"""`gpucnn export`: a checkpoint as an ONNX file."""

import argparse
import json

from gpucnn import models
from gpucnn.checkpoint import described, read_checkpoint, rebuild
from gpucnn.commands.arguments import Commands
from gpucnn.interop.onnx import export_onnx


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser(
        "export",
        help="a checkpoint as an ONNX file",
        description="Write the model of a checkpoint as an ONNX file.  Its input is float32 "
        "(N, H, W, C), normalised; names and normalisation are in the file's metadata.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="such as best.safetensors")
    parser.add_argument("target", metavar="TARGET", help="the .onnx file to write")


def run(arguments: argparse.Namespace) -> int:
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
