"""Ways out of PyTorch for a model: ONNX files, pictures of its graphs, a folder to deploy."""

from fastgraph.export import graphs
from fastgraph.export.onnx import to_onnx
from fastgraph.export.runtime import Binding, session

__all__ = ["Binding", "graphs", "session", "to_onnx"]
