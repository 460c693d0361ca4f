"""``torch.compile`` in its default mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgraph.bench.backends.backend import Backend, Setting


class TorchCompile(Backend):
    """Compiled for the case's own batch size, in the first call."""

    name = "torch.compile"
    any_batch = False
    casts_model = True

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """Wraps the model; an earlier case's graphs are dropped, which would be tried first on every call."""
        torch.compiler.reset()
        self._model, self._device = torch.compile(model), setting.device

    def run(self, x: Tensor) -> Tensor:
        """The compiled call, guards included."""
        return self._model(x)

    def ran_on(self) -> str:
        """The device and the compiler."""
        return f"{self._device}, inductor"
