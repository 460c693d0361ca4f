"""onnxruntime on the plain ONNX export of the model."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from fastgraph.bench.backends.backend import Backend, Setting

NUMPY = {torch.float32: np.float32, torch.int64: np.int64}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxruntimePlain(Backend):
    """All optimisations on, operators one after another, its threads spinning as they do by default.

    A call includes the way between PyTorch and NumPy, which copies nothing; it is what a user of PyTorch would pay.
    """

    name = "onnxruntime"
    needs = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")

    def refusal(self, setting: Setting) -> str | None:
        """No bf16: its CPU provider has no such matrix products, and the plain export is fp32."""
        if setting.launch == "graph":
            return "onnxruntime's calls cannot be captured into PyTorch's CUDA graph"
        return "onnxruntime runs the fp32 file only; its CPU has no bf16 products" if setting.dtype == "bf16" else None

    def export(self, model: nn.Module, x: Tensor, path: Path) -> None:
        """Writes the ONNX file; the bench checks what comes out itself."""
        from fastgraph.export import to_onnx

        to_onnx(model, (x,), path, verify=False)

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
            choice: tuple[str, dict[str, str]] = (provider, {})
            if setting.device == "cuda":
                onnxruntime.preload_dlls()  # CUDA's libraries, from where torch has them
                self._stream = torch.cuda.Stream(x.device)
                choice = (provider, cuda_options(self._stream))
            self._session = onnxruntime.InferenceSession(path, options, providers=[choice])
        if self._session.get_providers()[0] != provider:
            raise RuntimeError(f"{provider} cannot be had; onnxruntime offers {self._session.get_providers()}")
        self._input, self._output = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name
        if setting.device == "cuda":
            with torch.inference_mode():
                self._like, self._batch = model(x), x.shape[0]  # for the output's shape

    def run(self, x: Tensor) -> Tensor:
        """One session run; on CUDA the tensors stay where they are."""
        if x.is_cuda:
            return self._bound(x)
        return torch.from_numpy(self._session.run(None, {self._input: x.numpy()})[0])

    def _bound(self, x: Tensor) -> Tensor:
        """A run between CUDA tensors (IOBinding), in its place among the work on PyTorch's stream."""
        output = self._like.new_empty(self._output_shape(x))
        binding = self._session.io_binding()
        for bind, name, tensor in (
            (binding.bind_input, self._input, x),
            (binding.bind_output, self._output, output),
        ):
            bind(name, "cuda", tensor.device.index or 0, NUMPY[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
        current = torch.cuda.current_stream(x.device)
        self._stream.wait_stream(current)
        self._session.run_with_iobinding(binding)
        current.wait_stream(self._stream)
        return output

    def _output_shape(self, x: Tensor) -> tuple[int, ...]:
        """The output's shape for ``x``: its first axis goes with the batch."""
        first, *rest = self._like.shape
        return (first * x.shape[0] // self._batch, *rest)

    def ran_on(self) -> str:
        """The providers."""
        return ", ".join(self._session.get_providers())


def cuda_options(stream: torch.cuda.Stream) -> dict[str, str]:
    """The CUDA provider's options: a stream of PyTorch's, so that events see its kernels, and no TF32.

    Never PyTorch's default stream, whose address is 0: onnxruntime takes that for none, and makes one of its own.
    """
    device = str(stream.device.index)
    return {"device_id": device, "user_compute_stream": str(stream.cuda_stream), "use_tf32": "0"}
