"""Batch normalisation: start with op.py, then portable.py, cpu.py and cuda.py."""

from gpucnn.ops.batch_norm.op import batch_norm

__all__ = ["batch_norm"]
