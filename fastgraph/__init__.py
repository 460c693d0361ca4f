"""Trained PyTorch models at the speed of the hardware: same numbers, fewer and faster operators.

Importing it registers the ops `torch.ops.fastgraph.*`; everything else is imported when it is first used.
"""

from typing import TYPE_CHECKING

from fastgraph import lazy
from fastgraph.kernels.native import cpu_capability

if TYPE_CHECKING:
    from fastgraph import data, models
    from fastgraph.module import OptimizedModule, optimize
    from fastgraph.serialization import load, save

__all__ = ["OptimizedModule", "cpu_capability", "data", "load", "models", "optimize", "save"]
__version__ = "0.1.0"  # the only place; pyproject.toml reads it

__getattr__, __dir__ = lazy.attributes(
    __name__,
    {
        "OptimizedModule": "fastgraph.module:OptimizedModule",
        "data": "fastgraph.data",
        "load": "fastgraph.serialization:load",
        "models": "fastgraph.models",
        "optimize": "fastgraph.module:optimize",
        "save": "fastgraph.serialization:save",
    },
)
