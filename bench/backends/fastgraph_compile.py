"""``torch.compile(model, backend="fastgraph")``: the kernels behind torch.compile's own capture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastgraph
from fastgraph.bench.backends.backend import Backend, Setting


class FastgraphCompile(Backend):
    """Compiled for the case's own batch size, in the first call."""

    name = 'torch.compile(backend="fastgraph")'
    ours = True
    any_batch = False
    casts_model = True

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """Wraps the model; an earlier case's graphs are dropped, which would be tried first on every call."""
        torch.compiler.reset()
        self._model, self._device = torch.compile(model, backend="fastgraph"), setting.device

    def run(self, x: Tensor) -> Tensor:
        """The compiled call, guards included."""
        return self._model(x)

    def ran_on(self) -> str:
        """The device and the kernels' instruction set."""
        return f"{self._device}, {fastgraph.cpu_capability()}"
