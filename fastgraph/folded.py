"""A rewritten graph for a compiler: what depends on parameters alone is computed once, not in every call."""

import threading

import torch
from torch import fx

from fastgraph.kernels.weights import Snapshot
from fastgraph.program import Program


class Folded:
    """The graph of `program` as a module whose folded batch-norms and casts of weights are buffers.

    When a parameter has changed they are computed anew into the same memory, which a recorded CUDA graph reads.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._module: fx.GraphModule | None = None
        self._own: set[str] = set()  # constants in memory of their own; others are parameters, or views of them

    def fresh(self) -> fx.GraphModule:
        """The module, with constants for the parameters as they are now; the same module every time."""
        snapshot = self._snapshot
        if self._module is None or snapshot is None or not snapshot.matches(self._program.tensors()):
            with self._lock, torch.inference_mode(False), torch.no_grad():
                self._refresh()
        assert self._module is not None
        return self._module

    def _refresh(self) -> None:
        state = self._program.state()
        values = vars(state.values)
        if self._module is None:
            self._module = fx.GraphModule(values, self._program.graph)
            theirs = {t.untyped_storage().data_ptr() for t in self._program.tensors()}
            self._own = {n for n in self._program.computed() if values[n].untyped_storage().data_ptr() not in theirs}
        for name, value in values.items():
            held = getattr(self._module, name)
            if name in self._own and _alike(held, value):
                held.copy_(value)
            elif held is not value:
                setattr(self._module, name, value)
        self._snapshot = state.snapshot


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
