"""`gpucnn convert`: torchvision's AlexNet to gpucnn's and back."""

import argparse

from gpucnn.commands.arguments import Commands
from gpucnn.interop.torchvision import convert_file


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="torchvision's AlexNet to gpucnn's and back",
        description="Turn a state dict of torchvision's AlexNet (.safetensors, .pth or .pt) into "
        "a gpucnn checkpoint, or a checkpoint of alexnet_torchvision into such a state dict; "
        "which of the two, the source tells.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("source", metavar="SOURCE", help="the file to read")
    parser.add_argument("target", metavar="TARGET", help="the file to write")


def run(arguments: argparse.Namespace) -> int:
    print(convert_file(arguments.source, arguments.target))
    return 0
