"""OpenVINO's CPU plug-in on the plain ONNX export."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from fastgraph.bench.backends.backend import Backend, Setting


class OpenVino(Backend):
    """Compiled for the case's own shape (its dynamic shapes are slower), one stream, inputs and outputs not copied."""

    name = "OpenVINO"
    any_batch = False
    needs = ("openvino",)

    def refusal(self, setting: Setting) -> str | None:
        """It has no plug-in for CUDA."""
        return "OpenVINO has no CUDA device" if setting.device == "cuda" else None

    def __init__(self) -> None:
        self._exported: tuple[nn.Module | None, bytes] = (None, b"")

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """Exports the model, fixes the shape, compiles; RuntimeError where the dtype cannot be had."""
        import openvino

        wanted = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}[setting.dtype]
        config = {
            "INFERENCE_NUM_THREADS": setting.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": wanted,
        }
        graph = openvino.Core().read_model(self._file(model, x))
        graph.reshape(list(x.shape))
        self._compiled = openvino.compile_model(graph, "CPU", config)
        got = self._compiled.get_property("INFERENCE_PRECISION_HINT")
        if got != wanted:
            raise RuntimeError(f"OpenVINO computes in {got.to_string()} here, not in {wanted.to_string()}")
        self._about = f"CPU, {got.to_string()}, {self._compiled.get_property('INFERENCE_NUM_THREADS')} threads"

    def _file(self, model: nn.Module, x: Tensor) -> bytes:
        """The model's ONNX file, exported once for all batch sizes."""
        from fastgraph.export import to_onnx

        if self._exported[0] is not model:
            with TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                to_onnx(model, (x,), path, verify=False)
                self._exported = (model, path.read_bytes())
        return self._exported[1]

    def run(self, x: Tensor) -> Tensor:
        """One inference; the result lies in OpenVINO's own memory until the next call."""
        return torch.from_numpy(self._compiled(x.numpy(), share_inputs=True, share_outputs=True)[0])

    def ran_on(self) -> str:
        """The device, the dtype of the products, the threads."""
        return self._about
