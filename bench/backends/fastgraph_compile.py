"""``torch.compile(model, backend="fastgraph")``: the kernels behind torch.compile's own capture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import fastgraph
from fastgraph.bench.backends.torch_compile import TorchCompile


class FastgraphCompile(TorchCompile):
    """Compiled for the case's own batch size, in the first call."""

    name = 'torch.compile(backend="fastgraph")'
    is_ours = True
    options: ClassVar[Mapping[str, Any]] = {"backend": "fastgraph"}

    def ran_on(self) -> str:
        """The device and the kernels' instruction set."""
        return f"{self._device}, {fastgraph.cpu_capability()}"
