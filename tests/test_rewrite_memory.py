"""What rules must not do to memory that is shared, written, or handed out."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgraph
from fastgraph.capture import capture
from fastgraph.rewrite import rewrite

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


class Layers(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.first, self.second = function, nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("buffer", torch.ones(4, 4))

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def storages(values: Any) -> list[int]:
    keys = [v.untyped_storage().data_ptr() for v in values]
    return [keys.index(key) for key in keys]


def written_behind(m: Any, x: torch.Tensor) -> Any:
    h = torch.sigmoid(x)
    y = torch.relu(h)
    y[0].mul_(3)
    return h + y


def source_written_behind(m: Any, x: torch.Tensor) -> Any:
    h = torch.sigmoid(x)
    y = torch.relu(h)
    h[0].mul_(3)
    return h + y


def made_negative(m: Any, x: torch.Tensor) -> Any:
    h = torch.sigmoid(x)
    h.view(-1).neg_()
    return torch.relu(h)


def both_leave(m: Any, x: torch.Tensor) -> Any:
    h = torch.sigmoid(x)
    return h, torch.relu(h)


def views_leave(m: Any, x: torch.Tensor) -> Any:
    h = torch.softmax(x, 1)
    return h.t(), torch.relu(h).reshape(-1)


def einsum_alias(m: Any, x: torch.Tensor) -> Any:
    h = x * 2
    torch.relu_(torch.einsum("ij->ji", h))
    return h


def atleast_alias(m: Any, x: torch.Tensor) -> Any:
    h = m.first(x)
    torch.tanh_(torch.atleast_3d(h))
    return torch.relu(h)


def in_place_over_an_input(m: Any, x: torch.Tensor) -> Any:
    y = x.t().contiguous()
    return torch.relu_(x.clone()) + torch.relu_(y).t(), x


def linear_reads_before_the_write(m: Any, x: torch.Tensor) -> Any:
    h = x.clone()
    y = m.first(h)
    h.t()[1] += 100
    return torch.relu(y), m.second(h)


def weight_written_between(m: Any, x: torch.Tensor) -> Any:
    y = F.linear(x, m.buffer)
    m.buffer[:2] += 1
    return torch.relu(y)


def chain_with_a_write_of_other_memory(m: Any, x: torch.Tensor) -> Any:
    y = m.first(x)
    m.buffer[:2] += 1
    return torch.relu(y)


def dropouts(m: Any, x: torch.Tensor) -> Any:
    return F.dropout(x, 0.5, False), F.dropout(m.first(x), 0.5, False, True), torch.feature_dropout(x, 0.3, False)


CASES = [
    written_behind,
    source_written_behind,
    made_negative,
    both_leave,
    views_leave,
    einsum_alias,
    atleast_alias,
    in_place_over_an_input,
    linear_reads_before_the_write,
    weight_written_between,
    chain_with_a_write_of_other_memory,
    dropouts,
]


@pytest.mark.parametrize("function", CASES)
@pytest.mark.parametrize("engine", ["optimize", "compile"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_same_numbers_state_and_aliases(function: Any, engine: str) -> None:
    model, ours = Layers(function).eval(), Layers(function).eval()
    torch._dynamo.reset()
    fast: Any = fastgraph.optimize(ours, (X,)) if engine == "optimize" else torch.compile(ours, backend="fastgraph")
    with torch.no_grad():
        for _ in range(2):
            theirs, mine = X.clone(), X.clone()
            expected, actual = model(theirs), fast(mine)
            expected, actual = (r if isinstance(r, tuple) else (r,) for r in (expected, actual))
            torch.testing.assert_close(actual, expected)
            torch.testing.assert_close(mine, theirs)
            torch.testing.assert_close(ours.buffer, model.buffer)
            assert storages([mine, *actual]) == storages([theirs, *expected])


@pytest.mark.parametrize(
    ("function", "rule", "reason"),
    [
        (written_behind, "redundant_relu", "mul_ writes over it or over sigmoid, which would be one tensor"),
        (made_negative, "redundant_relu", "neg_ writes over it or over sigmoid, which would be one tensor"),
        (both_leave, "redundant_relu", "it and sigmoid are results of the module, which would be one tensor"),
        (einsum_alias, "in_place", "it writes over an input or a view"),
        (atleast_alias, "in_place", "it writes over an input or a view"),
        (linear_reads_before_the_write, "mlp", "add_ writes in place between its parts"),
        (weight_written_between, "mlp", "its weight buffer is written by add_"),
    ],
)
def test_reasons(function: Any, rule: str, reason: str) -> None:
    refusals = rewrite(capture(Layers(function).eval(), (X,)).graph_module).refusals
    assert reason in [r.reason for r in refusals if r.rule == rule]


def test_a_write_of_other_memory_is_no_obstacle() -> None:
    graph = rewrite(capture(Layers(chain_with_a_write_of_other_memory).eval(), (X,)).graph_module).graph
    fused = [n for n in graph.nodes if str(n.target) == "fastgraph.mlp.default"]
    assert [n.args[3] for n in fused] == [["relu"]]


def test_a_dilated_pool_in_its_padding_is_not_moved() -> None:
    """Its windows there hold nothing: -inf, which relu would make 0."""
    model = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, 1, 1, dilation=3)).eval()
    x = torch.randn(1, 1, 2, 2)
    assert torch.isinf(model(x)).any()
    assert torch.equal(fastgraph.optimize(model, (x,))(x), model(x))


def test_grad_mode_is_a_barrier() -> None:
    """What is computed without gradients must not become part of what is computed with them."""
    graph_module = capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sigmoid(), nn.Linear(4, 2)), (X,)).graph_module
    relu = next(n for n in graph_module.graph.nodes if n.name == "relu")
    with graph_module.graph.inserting_after(relu):
        graph_module.graph.call_function(torch._C._set_grad_enabled, (True,))
    with graph_module.graph.inserting_before(relu):
        graph_module.graph.call_function(torch._C._set_grad_enabled, (False,))
    result = rewrite(graph_module)
    assert [n.args[3] for n in result.graph.nodes if str(n.target) == "fastgraph.mlp.default"] == [["none"], ["none"]]
    assert "gradient mode changes between its parts" in [r.reason for r in result.refusals]


def test_weights_that_are_given_as_inputs() -> None:
    """As torch.compile does: a placeholder is a weight if the caller says so."""

    class Linear(nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            return torch.relu(F.linear(x, weight * 2, bias))

    graph_module = capture(Linear(), (X, torch.randn(5, 4), torch.randn(5))).graph_module
    places = graph_module.graph.find_nodes(op="placeholder")
    assert not any(str(n.target).startswith("fastgraph") for n in rewrite(graph_module).graph.nodes)
    assert not any(
        str(n.target).startswith("fastgraph") for n in rewrite(graph_module, weights=places[1:2]).graph.nodes
    )
    given = rewrite(graph_module, weights=places[1:]).graph
    assert [n.args[3] for n in given.nodes if str(n.target) == "fastgraph.mlp.default"] == [["relu"]]


def test_dtype_says_what_the_graph_will_be_cast_to() -> None:
    graph_module = capture(nn.Linear(4, 4).double(), (X.double(),)).graph_module
    assert "aten.linear" in str([n.target for n in rewrite(graph_module).graph.nodes])
    assert "fastgraph.mlp" in str([n.target for n in rewrite(graph_module, dtype=torch.bfloat16).graph.nodes])
