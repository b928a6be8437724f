"""`gpucnn export`: write a checkpoint as an ONNX file."""

import argparse
import json

from gpucnn import models
from gpucnn.checkpoint import read_checkpoint
from gpucnn.commands.arguments import Commands
from gpucnn.files import refuse_same_file
from gpucnn.interop.onnx import export_onnx


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write a checkpoint as an ONNX file",
        description="Write the model of a checkpoint as an ONNX file.  Its input is a batch of "
        "normalised float32 images (N, H, W, C).  The class names and the normalisation are in the "
        "file's metadata.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a checkpoint, such as best.safetensors"
    )
    parser.add_argument("target", metavar="TARGET", help="the .onnx file to write")


def run(arguments: argparse.Namespace) -> int:
    refuse_same_file("export", arguments.checkpoint, arguments.target)
    checkpoint = read_checkpoint(arguments.checkpoint)
    name, config = checkpoint.model_config()
    shape = models.input_shape(name, **config)
    info = checkpoint.info
    metadata: dict[str, str] = {
        key: json.dumps(info[key]) for key in ("classes", "normalize") if key in info
    }
    export_onnx(checkpoint.build_model(), arguments.target, shape, metadata)
    print(f"{arguments.target}: {name}, input (N, {', '.join(map(str, shape))})")
    return 0
