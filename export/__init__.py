"""Ways out of PyTorch for a model: ONNX files."""

from export.onnx import session, to_onnx

__all__ = ["session", "to_onnx"]
