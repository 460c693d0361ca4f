"""``torch.compile(mode="max-autotune")`` with the weights frozen into the graph: Inductor's best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from fastgraph.bench.backends.backend import Setting
from fastgraph.bench.backends.torch_compile import TorchCompile


class TorchCompileMax(TorchCompile):
    """Compiled for the case's own batch size, in the first call, with every template tried: 10 to 20 s."""

    name = "torch.compile max-autotune"
    own_graph = True
    slow_to_compile = True
    options: ClassVar[Mapping[str, Any]] = {"mode": "max-autotune"}

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """Wraps the model; freezing is a setting of the whole process."""
        import torch._inductor.config as inductor

        inductor.freezing = True
        super().prepare(model, x, setting)

    def ran_on(self) -> str:
        """The device and the compiler."""
        return f"{super().ran_on()}, frozen"
