"""Ways out of PyTorch for a model: ONNX files, pictures of its graphs, a folder to deploy."""

from export import graphs
from export.onnx import to_onnx
from export.runtime import Binding, session

__all__ = ["Binding", "graphs", "session", "to_onnx"]
