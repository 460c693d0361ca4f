"""``torch.compile`` with the weights frozen into the graph: packed for oneDNN, batch-norms folded."""

from __future__ import annotations

from torch import Tensor, nn

from fastgraph.bench.backends.backend import Setting
from fastgraph.bench.backends.torch_compile import TorchCompile


class TorchCompileFrozen(TorchCompile):
    """Compiled for the case's own batch size, in the first call; training the model afterwards is not seen."""

    name = "torch.compile frozen"

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """Wraps the model; freezing is a setting of the whole process."""
        import torch._inductor.config as inductor

        inductor.freezing = True
        super().prepare(model, x, setting)

    def ran_on(self) -> str:
        """The device and the compiler."""
        return f"{super().ran_on()}, frozen"
