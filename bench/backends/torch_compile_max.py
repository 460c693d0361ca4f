"""``torch.compile(mode="max-autotune")`` with the weights frozen into the graph: Inductor's best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fastgraph.bench.backends.torch_compile_frozen import TorchCompileFrozen


class TorchCompileMax(TorchCompileFrozen):
    """Compiled for the case's own batch size, in the first call, with every template tried: 10 to 20 s."""

    name = "torch.compile max-autotune"
    own_graph = True
    slow_to_compile = True
    options: ClassVar[Mapping[str, Any]] = {"mode": "max-autotune"}
