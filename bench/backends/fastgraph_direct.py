"""``fastgraph.optimize`` with the direct engine: the prebuilt kernels, no compiler."""

from __future__ import annotations

from torch import Tensor, nn

import fastgraph
from fastgraph.bench.backends.backend import Backend, Setting


class FastgraphDirect(Backend):
    """What ``fastgraph.optimize`` gives on a CPU."""

    name = "fastgraph"
    is_ours = True
    engine = "direct"

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """Captures, rewrites, packs; the bench checks the result itself."""
        dtype = None if setting.dtype == "fp32" else setting.torch_dtype
        self._model = fastgraph.optimize(model, (x,), dtype=dtype, engine=self.engine, verify=False)
        self._device = setting.device

    def run(self, x: Tensor) -> Tensor:
        """The optimized module's call."""
        return self._model(x)

    def fused(self) -> float | None:
        """As ``explain()`` has it."""
        return self._model.explain().fused_share

    def ran_on(self) -> str:
        """The device, and the kernels that ``explain()`` names."""
        kernels = dict.fromkeys(row.kernel for row in self._model.explain() if row.kernel)
        return ", ".join([self._device, *kernels])
