"""``torch.compile(mode="max-autotune")`` with the weights frozen into the graph: Inductor's best."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgraph.bench.backends.backend import Backend, Setting


class TorchCompileMax(Backend):
    """Compiled for the case's own batch size, in the first call, with every template tried."""

    name = "torch.compile max-autotune"
    any_batch = False
    casts_model = True
    own_graph = True

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """Wraps the model; freezing is a setting of the whole process."""
        import torch._inductor.config as inductor

        torch.compiler.reset()
        inductor.freezing = True
        self._model, self._device = torch.compile(model, mode="max-autotune"), setting.device

    def run(self, x: Tensor) -> Tensor:
        """The compiled call, guards included."""
        return self._model(x)

    def ran_on(self) -> str:
        """The device and the compiler."""
        return f"{self._device}, inductor, frozen"
