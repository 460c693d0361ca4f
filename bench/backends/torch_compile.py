"""``torch.compile`` in its default mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastgraph.bench.backends.backend import Backend, Setting


class TorchCompile(Backend):
    """Compiled for the case's own batch size, in the first call. ``options`` are those of ``torch.compile``."""

    name = "torch.compile"
    any_batch = False
    casts_model = True
    options: ClassVar[Mapping[str, Any]] = {}

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """Wraps the model; an earlier case's graphs are dropped, which would be tried first on every call."""
        torch.compiler.reset()
        self._model, self._device = torch.compile(model, **self.options), setting.device

    def run(self, x: Tensor) -> Tensor:
        """The compiled call, guards included."""
        return self._model(x)

    def ran_on(self) -> str:
        """The device and the compiler."""
        return f"{self._device}, inductor"


class TorchCompileOnce(TorchCompile):
    """Compiled once for all batch sizes, where once for each would take minutes."""

    any_batch = True
    options: ClassVar[Mapping[str, Any]] = {"dynamic": True}
