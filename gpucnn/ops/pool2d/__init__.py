"""Pooling: start with op.py, then portable.py, cpu.py and cuda.py."""

from gpucnn.ops.pool2d.op import MaxPool, avg_pool2d, global_avg_pool2d, max_pool2d

__all__ = ["MaxPool", "avg_pool2d", "global_avg_pool2d", "max_pool2d"]
