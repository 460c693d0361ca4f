"""Trained PyTorch models at the speed of the hardware: same numbers, fewer and faster operators."""

import kernels

if not getattr(kernels, "FASTGRAPH", False):
    raise ImportError(
        f"fastgraph needs its own package 'kernels', but the one imported is {kernels.__file__}: "
        "uninstall the other package of that name or put fastgraph's folder before it on sys.path"
    )

from fastgraph import data, models
from fastgraph.module import OptimizedModule, optimize
from fastgraph.serialization import load, save
from kernels.native import cpu_capability

__all__ = ["OptimizedModule", "cpu_capability", "data", "load", "models", "optimize", "save"]
__version__ = "0.1.0"
