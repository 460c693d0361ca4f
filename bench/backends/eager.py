"""The model as it is: the reference that all others are compared with."""

from __future__ import annotations

from torch import Tensor, nn

from fastgraph.bench.backends.backend import Backend, Setting


class Eager(Backend):
    """PyTorch, operator by operator."""

    name = "eager"
    casts_model = True

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """Keeps the model."""
        self._model, self._device = model, setting.device

    def run(self, x: Tensor) -> Tensor:
        """The model's own call."""
        return self._model(x)

    def ran_on(self) -> str:
        """The device."""
        return self._device
