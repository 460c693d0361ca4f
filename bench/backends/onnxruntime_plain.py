"""onnxruntime on the plain ONNX export of the model."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from bench.backends.backend import Backend, Setting

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxruntimePlain(Backend):
    """All optimisations on, operators one after another, its threads spinning as they do by default.

    A call includes the way between PyTorch and NumPy, which copies nothing; it is what a user of PyTorch would pay.
    """

    name = "onnxruntime"

    def refusal(self, setting: Setting) -> str | None:
        """Its CPU provider has no bf16 kernels for matrix products."""
        bf16 = setting.dtype == "bf16" and setting.device == "cpu"
        return "onnxruntime has no bf16 matrix products on the CPU" if bf16 else None

    def export(self, model: nn.Module, x: Tensor, path: Path) -> None:
        """Writes the ONNX file."""
        from export import to_onnx

        to_onnx(model, (x,), path)

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """Exports the model and opens a session on the provider that was asked for, or raises."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setting.threads
        options.inter_op_num_threads = 1
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            self.export(model, x, path)
            provider = PROVIDERS[setting.device]
            self._session = onnxruntime.InferenceSession(path, options, providers=[provider])
        if self._session.get_providers()[0] != provider:
            raise RuntimeError(f"{provider} cannot be had; onnxruntime offers {self._session.get_providers()}")
        self._input = self._session.get_inputs()[0].name

    def run(self, x: Tensor) -> Tensor:
        """One session run."""
        return torch.from_numpy(self._session.run(None, {self._input: x.numpy()})[0])

    def ran_on(self) -> str:
        """The providers."""
        return ", ".join(self._session.get_providers())
