"""The backends, one file each. A new one: a file with a ``Backend``, and its line in ``BACKENDS``."""

from __future__ import annotations

from fastgraph.bench.backends.aotinductor import AotInductor
from fastgraph.bench.backends.backend import DTYPES, Backend, Setting
from fastgraph.bench.backends.eager import Eager
from fastgraph.bench.backends.fastgraph_compile import FastgraphCompile
from fastgraph.bench.backends.fastgraph_direct import FastgraphDirect
from fastgraph.bench.backends.fastgraph_inductor import FastgraphInductor
from fastgraph.bench.backends.onnxruntime_ours import OnnxruntimeOurs
from fastgraph.bench.backends.onnxruntime_plain import OnnxruntimePlain
from fastgraph.bench.backends.openvino import OpenVino
from fastgraph.bench.backends.torch_compile import TorchCompile
from fastgraph.bench.backends.torch_compile_frozen import TorchCompileFrozen
from fastgraph.bench.backends.torch_compile_max import TorchCompileMax

BACKENDS: dict[str, type[Backend]] = {
    "eager": Eager,
    "compile": TorchCompile,
    "compile-frozen": TorchCompileFrozen,
    "compile-max": TorchCompileMax,
    "aotinductor": AotInductor,
    "onnxruntime": OnnxruntimePlain,
    "onnxruntime-ours": OnnxruntimeOurs,
    "openvino": OpenVino,
    "fastgraph": FastgraphDirect,
    "fastgraph-inductor": FastgraphInductor,
    "fastgraph-compile": FastgraphCompile,
}
"""By the name that options take."""

BASELINE, OURS = "eager", "fastgraph"
BASELINE_NAME, OURS_NAME = BACKENDS[BASELINE].name, BACKENDS[OURS].name
"""The two that reports compare, by option and by the name that their rows have."""
OPTIONS = {backend.name: option for option, backend in BACKENDS.items()}
"""The option of each name in a report."""

__all__ = ["BACKENDS", "BASELINE", "BASELINE_NAME", "DTYPES", "OPTIONS", "OURS", "OURS_NAME", "Backend", "Setting"]
