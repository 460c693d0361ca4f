"""The backends, one file each. A new one: a file with a ``Backend``, and its line in ``BACKENDS``."""

from __future__ import annotations

from bench.backends.aotinductor import AotInductor
from bench.backends.backend import DTYPES, Backend, Setting
from bench.backends.eager import Eager
from bench.backends.fastgraph_compile import FastgraphCompile
from bench.backends.fastgraph_direct import FastgraphDirect
from bench.backends.fastgraph_inductor import FastgraphInductor
from bench.backends.onnxruntime_ours import OnnxruntimeOurs
from bench.backends.onnxruntime_plain import OnnxruntimePlain
from bench.backends.openvino import OpenVino
from bench.backends.torch_compile import TorchCompile
from bench.backends.torch_compile_max import TorchCompileMax

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
