"""What a compiler is given: constants computed once, and anew in the same memory when a parameter has changed."""

from typing import Any

import pytest
import torch
from torch import nn

import fastgraph
from fastgraph.folded import Folded
from fastgraph.program import Program
from tests.reference import random


class Model(nn.Module):
    """Batch-norm to fold, weights to cast, and a view of a parameter that is constant too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.mixed = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).mean((2, 3)) @ self.mixed.t()


@pytest.fixture
def x(generator: torch.Generator) -> torch.Tensor:
    return random(generator, (3, 2, 5, 5))


def folded_of(x: torch.Tensor, dtype: torch.dtype | None = None) -> tuple[fastgraph.OptimizedModule, Folded]:
    torch.manual_seed(8)
    module = fastgraph.optimize(Model().eval(), (x,), dtype=dtype)
    return module, Folded(Program(module, module.rewritten.graph, pack=False))


def agrees(module: fastgraph.OptimizedModule, folded: Folded, x: torch.Tensor) -> None:
    """The same bits as the graph as it is, which computes all of it in the call."""
    with torch.no_grad():
        (expected,), (actual,) = module.rewritten.graph_module(x), folded.fresh()(x)
    assert torch.equal(actual, expected)


def change(module: nn.Module) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.5).add_(0.25)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_call_computes_no_constants(dtype: torch.dtype | None, x: torch.Tensor) -> None:
    module, folded = folded_of(x, dtype)
    agrees(module, folded, x)
    targets = [str(n.target) for n in folded.fresh().graph.nodes if n.op == "call_function"]
    casts = [] if dtype is None else ["aten.to.dtype"]  # of the input and the output
    wanted = [*casts, "aten.conv2d.default", "aten.mean.dim", "fastgraph.mlp.default", *casts]
    assert targets == wanted
    assert len(list(module.rewritten.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor))) > 0


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_constants_follow_the_parameters_in_the_same_memory(dtype: torch.dtype | None, x: torch.Tensor) -> None:
    module, folded = folded_of(x, dtype)
    compiled = folded.fresh()
    held = {name: value.data_ptr() for name, value in [*compiled.named_parameters(), *compiled.named_buffers()]}
    before = [p.detach().clone() for p in module.parameters()]
    change(module)
    changed = [p.detach().clone() for p in module.parameters()]
    versions = [p._version for p in module.parameters()]
    agrees(module, folded, x)
    assert folded.fresh() is compiled
    assert held == {name: value.data_ptr() for name, value in [*compiled.named_parameters(), *compiled.named_buffers()]}
    # The parameters are the user's: none of them is written to.
    assert [p._version for p in module.parameters()] == versions
    assert all(
        torch.equal(p, c) and not torch.equal(p, b)
        for p, c, b in zip(module.parameters(), changed, before, strict=True)
    )


def test_a_replaced_parameter_is_seen_and_the_old_one_left_alone(x: torch.Tensor) -> None:
    module, folded = folded_of(x)
    agrees(module, folded, x)
    old = dict(module.named_parameters())
    kept = {name: p.detach().clone() for name, p in old.items()}
    for name, p in old.items():
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, nn.Parameter(p.detach() + 1))
    agrees(module, folded, x)
    assert all(torch.equal(p, kept[name]) for name, p in old.items())


def test_nothing_is_computed_while_nothing_changes(x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    module, folded = folded_of(x, torch.bfloat16)
    count = 0
    state = Program.state

    def counted(program: Program) -> Any:
        nonlocal count
        count += 1
        return state(program)

    monkeypatch.setattr(Program, "state", counted)
    for _ in range(3):
        folded.fresh()
    assert count == 1
    change(module)
    for _ in range(3):
        folded.fresh()
    assert count == 2


def test_inference_mode_before_and_after(x: torch.Tensor) -> None:
    module, folded = folded_of(x, torch.bfloat16)
    with torch.inference_mode():
        folded.fresh()
    change(module)
    agrees(module, folded, x)
    with torch.inference_mode():
        change(module)
        agrees(module, folded, x)


def test_a_compiler_sees_fixed_weights_and_compiles_once(x: torch.Tensor) -> None:
    module, folded = folded_of(x, torch.bfloat16)
    shapes: list[list[torch.Size]] = []

    def backend(graph_module: Any, example_inputs: list[Any]) -> Any:
        values = [node.meta["example_value"] for node in graph_module.graph.find_nodes(op="placeholder")]
        shapes.append([v.shape for v in values if isinstance(v, torch.Tensor)])
        return graph_module.forward

    compiled = torch.compile(folded.fresh(), dynamic=True, backend=backend)
    with torch.no_grad():
        for batch in (3, 6):
            change(module)
            folded.fresh()
            compiled(x.repeat(2, 1, 1, 1)[:batch])
    assert len(shapes) == 1
    free = [shape for shape in shapes[0] if any(isinstance(n, torch.SymInt) for n in shape)]
    assert len(free) == 1  # the input
