"""Models and training runs in safetensors files (gpucnn/tensor_file.py), with checksums.

info           the entries of the header's JSON, checked by a schema
files          Checkpoint, read_checkpoint, write_checkpoint
model_files    gpucnn.save and gpucnn.load
"""

from gpucnn.checkpoint.files import FORMAT, Checkpoint, read_checkpoint, write_checkpoint
from gpucnn.checkpoint.model_files import load, save

__all__ = ["FORMAT", "Checkpoint", "load", "read_checkpoint", "save", "write_checkpoint"]
