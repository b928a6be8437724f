"""Conversion to and from other libraries: ONNX and torchvision."""

from gpucnn.interop.onnx import export_onnx

__all__ = ["export_onnx"]
