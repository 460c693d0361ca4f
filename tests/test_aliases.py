"""Which values of a captured graph may be one memory, what is written, and what counts as constant."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from fastgraph.aliases import Aliases, is_mutation
from fastgraph.capture import capture
from fastgraph.constants import constant_nodes

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


class State(nn.Module):
    """A module with a buffer, a parameter, and a forward that the test gives."""

    def __init__(self, function: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("buffer", torch.zeros(3, 4))
        self.register_buffer("flat", self.buffer.view(-1))
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def graph_of(function: Callable[[Any, torch.Tensor], Any]) -> fx.Graph:
    return capture(State(function).eval(), (X,)).graph


def node(graph: fx.Graph, name: str) -> fx.Node:
    return next(n for n in graph.nodes if n.name == name)


@pytest.mark.parametrize(
    "view",
    [
        lambda h: torch.einsum("ij->ji", h),
        torch.atleast_3d,
        lambda h: h.reshape(-1),
        lambda h: h.reshape(3, 2, 2),
        lambda h: h.t().contiguous(),
        lambda h: h.expand_as(h),
        lambda h: h.type_as(h),
        lambda h: h.to(torch.float32),
        lambda h: h.sum_to_size(3, 4),
        lambda h: torch.meshgrid(h[0], h[1], indexing="ij")[0],
        lambda h: torch.broadcast_tensors(h, h[0])[1],
        lambda h: h.unsafe_chunk(2)[1],
        lambda h: h.split([1, 2])[0],
        lambda h: h.unbind(1)[2],
        lambda h: torch.cartesian_prod(h[0]),
        lambda h: h[..., :2].unfold(1, 2, 1).movedim(0, 1),
    ],
)
def test_views_are_one_memory(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    def forward(self: Any, x: torch.Tensor) -> Any:
        h = x * 2
        y = view(h)
        return y + 1, h

    graph = graph_of(forward)
    aliases = Aliases(graph)
    last = node(graph, "add").args[0]
    assert isinstance(last, fx.Node)
    assert aliases.share(node(graph, "mul"), last)
    assert not aliases.share(node(graph, "mul"), node(graph, "add"))
    assert not aliases.share(node(graph, "mul"), node(graph, "x"))


@pytest.mark.parametrize(
    "fresh",
    [
        lambda h: h + 1,
        lambda h: torch.relu(h),
        lambda h: h.softmax(1),
        lambda h: nn.functional.linear(h, h),
        lambda h: nn.functional.layer_norm(h, (4,)),
        lambda h: torch.cat([h, h]),
        lambda h: h.clone(),
        lambda h: h.double(),
        lambda h: h > 0,
    ],
)
def test_results_are_memory_of_their_own(fresh: Callable[[torch.Tensor], torch.Tensor]) -> None:
    graph = graph_of(lambda self, x: fresh(x * 2))
    result = graph.output_node().all_input_nodes[0]
    assert not Aliases(graph).share(node(graph, "mul"), result)


def slice_assign(self: Any, x: torch.Tensor) -> Any:
    self.buffer[..., :-2] = self.buffer[..., 2:].clone()
    return self.buffer * self.weight


def slice_add(self: Any, x: torch.Tensor) -> Any:
    self.buffer[:2] += 1
    return self.buffer * self.weight


def through_view(self: Any, x: torch.Tensor) -> Any:
    self.buffer.view(-1)[2] = 3
    return self.buffer * self.weight


def through_another_buffer(self: Any, x: torch.Tensor) -> Any:
    self.flat.mul_(2)
    return self.buffer * self.weight


def indexed(self: Any, x: torch.Tensor) -> Any:
    self.buffer[torch.tensor([0, 2])] = x[:2]
    return self.buffer * self.weight


def into_out(self: Any, x: torch.Tensor) -> Any:
    torch.mul(self.weight.detach(), 2, out=self.buffer[0])
    return self.buffer * self.weight


def statistics(self: Any, x: torch.Tensor) -> Any:
    nn.functional.batch_norm(x, self.buffer[0], torch.ones(4), training=True)
    return self.buffer * self.weight


@pytest.mark.parametrize(
    "forward", [slice_assign, slice_add, through_view, through_another_buffer, indexed, into_out, statistics]
)
def test_a_buffer_that_is_written_through_an_alias_is_no_constant(forward: Any) -> None:
    graph = graph_of(forward)
    constants = {n.name for n in constant_nodes(graph)}
    assert "weight" in constants
    assert not constants & {"buffer", "flat"}
    assert not any(n.name in constants for n in graph.output_node().all_input_nodes)
    assert any(is_mutation(n) for n in graph.nodes)


def test_what_leaves_is_no_constant_if_it_was_computed() -> None:
    graph = graph_of(lambda self, x: (self.weight.exp().reshape(2, 2), x * self.weight.sin(), self.weight))
    assert {n.name for n in constant_nodes(graph)} == {"buffer", "flat", "weight", "sin"}


def test_eval_dropout_in_place_writes_nothing() -> None:
    graph = graph_of(lambda self, x: nn.functional.dropout(x * 2, 0.5, False, True))
    assert not any(is_mutation(n) for n in graph.nodes)


def test_two_inputs_may_be_one_tensor_once_one_is_written() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            x.mul_(2)
            return y + 1

    graph = capture(Two(), (X, X.clone())).graph
    assert [w.name for w in Aliases(graph).writers(node(graph, "y"))] == ["mul_"]


def test_nested_graphs_write_and_return_what_they_were_given() -> None:
    def forward(self: Any, x: torch.Tensor) -> Any:
        h = x * 2
        y = torch.cond(x.sum() > 0, lambda h: h.sin(), lambda h: h.cos(), (h,))
        return y, h

    graph = graph_of(forward)
    aliases = Aliases(graph)
    results = graph.output_node().all_input_nodes
    assert not aliases.share(*results)
    assert not any(is_mutation(n) for n in graph.nodes)

    def writes(self: Any, x: torch.Tensor) -> Any:
        h = x * 2
        with torch.autocast("cpu", torch.bfloat16):
            self.buffer.add_(1)
            y = h.view(-1)
        return y, h, self.buffer * 2

    graph = graph_of(writes)
    aliases = Aliases(graph)
    results = graph.output_node().all_input_nodes
    assert aliases.share(results[0], results[1])
    assert aliases.writers(node(graph, "buffer"))


@pytest.mark.parametrize(
    "view", [lambda h: torch.einsum("ij->ji", h), torch.atleast_3d, lambda h: h.unsafe_chunk(2)[0]]
)
def test_operators_that_may_be_views_are_known_without_storages(view: Any) -> None:
    """At other sizes than the example's they may be what they were not there."""

    def forward(self: Any, x: torch.Tensor) -> Any:
        h = x * 2
        return view(h) + 1, h

    graph = graph_of(forward)
    for n in graph.nodes:
        value = n.meta.get("val")
        n.meta["val"] = torch.empty(3, 4, device="meta") if isinstance(value, torch.Tensor) else value
    last = node(graph, "add").args[0]
    assert isinstance(last, fx.Node)
    assert Aliases(graph).share(node(graph, "mul"), last)
    assert not Aliases(graph).share(node(graph, "mul"), node(graph, "add"))
