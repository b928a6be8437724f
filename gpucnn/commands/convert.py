"""`gpucnn convert`: convert torchvision's AlexNet weights to gpucnn's and back."""

import argparse

from gpucnn.commands.arguments import Commands
from gpucnn.interop.torchvision import convert_file


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="convert torchvision's AlexNet weights to gpucnn's and back",
        description="Convert a state dict of torchvision's AlexNet (.safetensors, .pth or .pt) to "
        "a gpucnn checkpoint, or a checkpoint of alexnet_torchvision to such a state dict.  The "
        "content of SOURCE decides the direction.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("source", metavar="SOURCE", help="the file to read")
    parser.add_argument("target", metavar="TARGET", help="the file to write")


def run(arguments: argparse.Namespace) -> int:
    print(convert_file(arguments.source, arguments.target))
    return 0
