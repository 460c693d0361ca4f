"""A module under torch.compile(backend="fastgraph") beside eager: numbers, gradients, aliases, state."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import fastgraph.backend
from fastgraph.torch_fusions import Fusion
from tests.reference import assert_close_to_reference, double


@dataclass
class Seen:
    """What the backend found in the graphs that it was given since the last look."""

    fusions: list[Fusion] = field(default_factory=list)
    graphs: int = 0

    def take(self) -> list[str]:
        """The names of the fused ops, in order."""
        names = [fusion.op.name for fusion in self.fusions]
        self.fusions.clear()
        return names


def spy(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Notes what the backend finds from now on."""
    seen, original = Seen(), fastgraph.backend.find

    def find(graph: Any) -> Any:
        fusions = original(graph)
        seen.fusions += fusions.found
        seen.graphs += 1
        return fusions

    monkeypatch.setattr(fastgraph.backend, "find", find)
    return seen


@dataclass
class Outcome:
    """All that can be told of a call."""

    results: list[Any]
    inputs: list[torch.Tensor]
    state: dict[str, torch.Tensor]
    gradients: list[torch.Tensor | None]

    def aliases(self) -> list[tuple[int, int]]:
        """Which of the results and inputs are one memory."""
        tensors = [t for t in (*self.results, *self.inputs) if isinstance(t, torch.Tensor)]
        memory = [t.untyped_storage().data_ptr() for t in tensors]
        return [(i, j) for i, a in enumerate(memory) for j, b in enumerate(memory) if i < j and a == b]

    def facts(self) -> list[Any]:
        """What is the same whatever rounds how."""
        described = [
            (t.shape, t.dtype, t.requires_grad, t.is_inference()) if isinstance(t, torch.Tensor) else t
            for t in self.results
        ]
        return [described, self.aliases(), [g is None for g in self.gradients]]

    def numbers(self) -> list[torch.Tensor]:
        """All values afterwards."""
        values = [*self.results, *self.inputs, *self.state.values(), *self.gradients]
        return [v.detach() for v in values if isinstance(v, torch.Tensor)]


def call(model: nn.Module, function: Callable[..., Any], inputs: list[Any], backward: bool) -> Outcome:
    """Calls `function`, which is `model` or made of it, on copies of the inputs."""
    torch.manual_seed(3)
    inputs = [t.detach().clone().requires_grad_(t.requires_grad) if isinstance(t, torch.Tensor) else t for t in inputs]
    # Not the leaves themselves, so that they can be written to.
    given = [t.clone() if isinstance(t, torch.Tensor) and t.requires_grad else t for t in inputs]
    results = pytree.tree_leaves(function(*given))
    gradients: list[torch.Tensor | None] = []
    if backward:
        model.zero_grad()
        wanted = [r for r in results if isinstance(r, torch.Tensor) and r.requires_grad]
        if wanted:
            sum((r * torch.arange(1.0, r.shape[-1] + 1)).sum() for r in wanted).backward()
        leaves = [*model.parameters(), *(t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad)]
        gradients = [t.grad for t in leaves]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return Outcome(results, [t for t in given if isinstance(t, torch.Tensor)], state, gradients)


def assert_as_eager(
    model: nn.Module, *inputs: Any, backward: bool = False, calls: int = 2, exactly: bool = False, **options: Any
) -> None:
    """Compares calls of the compiled model with those of a copy in eager, and of one in float64.

    exactly: the same bits as eager, for what is not fused and has no float64.
    """
    torch.compiler.reset()
    eager, exact = copy.deepcopy(model), copy.deepcopy(model)
    exact = exact if exactly else exact.double()
    compiled = torch.compile(model, backend="fastgraph", **{"fullgraph": True, **options})
    for _ in range(calls):
        ours = call(model, compiled, list(inputs), backward)
        theirs = call(eager, eager, list(inputs), backward)
        reference = theirs if exactly else call(exact, exact, double(list(inputs)), backward)
        assert ours.facts() == theirs.facts()
        for a, b, c in zip(ours.numbers(), theirs.numbers(), reference.numbers(), strict=True):
            if exactly or not b.is_floating_point():
                assert torch.equal(a, b)
            else:
                assert_close_to_reference(a, b, c)
