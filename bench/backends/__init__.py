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
from fastgraph.bench.backends.torch_compile_max import TorchCompileMax

BACKENDS: dict[str, type[Backend]] = {
    "eager": Eager,
    "compile": TorchCompile,
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

BASELINE = "eager"
OURS = "fastgraph"

__all__ = ["BACKENDS", "BASELINE", "DTYPES", "OURS", "Backend", "Setting"]
