"""Networks to and from other libraries: ONNX, torchvision."""

from gpucnn.interop.onnx import export_onnx

__all__ = ["export_onnx"]
