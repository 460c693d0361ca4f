"""onnxruntime on our own export: the rewritten graph in standard ONNX operators."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

import fastgraph
from fastgraph.bench.backends.onnxruntime_plain import OnnxruntimePlain


class OnnxruntimeOurs(OnnxruntimePlain):
    """The file that ``export.to_onnx`` writes for an optimized module."""

    name = "onnxruntime, our export"

    def export(self, model: nn.Module, x: Tensor, path: Path) -> None:
        """Writes the ONNX file of the optimized module."""
        from fastgraph.export import to_onnx

        to_onnx(fastgraph.optimize(model, (x,), verify=False).eval(), (x,), path, verify=False)
