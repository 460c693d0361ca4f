"""Ways out of PyTorch for a model: ONNX files, pictures of its graphs, a folder to deploy.

Each is imported when it is first used, and says then which packages it needs and has not got.
"""

from typing import TYPE_CHECKING

from fastgraph import lazy

if TYPE_CHECKING:
    from fastgraph.export import graphs
    from fastgraph.export.onnx import to_onnx
    from fastgraph.export.runtime import Binding, session

__all__ = ["Binding", "graphs", "session", "to_onnx"]

__getattr__, __dir__ = lazy.attributes(
    __name__,
    {
        "Binding": "fastgraph.export.runtime:Binding",
        "graphs": "fastgraph.export.graphs",
        "session": "fastgraph.export.runtime:session",
        "to_onnx": "fastgraph.export.onnx:to_onnx",
    },
)
