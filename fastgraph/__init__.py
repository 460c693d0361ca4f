"""Trained PyTorch models at the speed of the hardware: same numbers, fewer and faster operators."""

from fastgraph import data, models
from fastgraph.kernels.native import cpu_capability
from fastgraph.module import OptimizedModule, optimize
from fastgraph.serialization import load, save

__all__ = ["OptimizedModule", "cpu_capability", "data", "load", "models", "optimize", "save"]
__version__ = "0.1.0"
