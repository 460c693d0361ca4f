"""Gradients through the direct engine: each fused op on packed weights, and modules of one and of several."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

import fastgraph
from fastgraph.gradients import differentiable
from fastgraph.kernels import autograd
from fastgraph.kernels.bound import Bound
from fastgraph.kernels.library import Op
from tests.reference import layers, random

GEOMETRY = ([1, 1], [0, 0], [1, 1], [2, 2], [2, 2], [0, 0], False)
NAMES = {"mlp": "MlpBackward", "conv_pool": "ConvPoolBackward", "conv_pool_mlp": "ConvPoolMlpBackward"}


def arguments(name: str, biases: bool, generator: torch.Generator) -> tuple[torch.Tensor, list[Any]]:
    """An input and the op's other arguments."""
    weights, chain_biases = layers(generator, (7, 9, 4))
    chain = [weights, chain_biases if biases else [None, None], ["tanh", "softmax"]]
    if name == "mlp":
        return random(generator, (5, 7)), chain
    bias = random(generator, (3,)) if biases else None
    convolution = [random(generator, (3, 2, 3, 3)), bias, *GEOMETRY]
    return random(generator, (2, 2, 9, 16)), convolution + (chain if name == "conv_pool_mlp" else [])


def tensors(values: list[Any]) -> list[torch.Tensor]:
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [t.requires_grad_() for t in flat if isinstance(t, torch.Tensor)]


def with_gradients(name: str, others: list[Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The op on packed weights as the engine runs it: a function of the input, with gradients for all tensors."""
    op, graph = Op.named(name), fx.Graph()
    nodes = pytree.tree_map_only(torch.Tensor, lambda _: graph.placeholder("weight"), others)
    node = graph.call_function(op.target, (graph.placeholder("input"), *nodes))
    function, bound, (flat, _) = differentiable(node), Bound(op, *others), autograd.flatten(others)
    return lambda input: function.apply(bound, input, *flat)


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_an_op_on_packed_weights_has_the_ops_gradients(name: str, biases: bool, generator: torch.Generator) -> None:
    x, others = arguments(name, biases, generator)
    wanted = tensors([x, *others])
    fast, registered = with_gradients(name, others)(x), getattr(torch.ops.fastgraph, name)(x, *others)
    assert torch.equal(fast, registered)
    assert fast.grad_fn.name() == registered.grad_fn.name() == NAMES[name]
    seed = random(generator, tuple(fast.shape))
    ours = torch.autograd.grad(fast, wanted, seed, create_graph=True)
    theirs = torch.autograd.grad(registered, wanted, seed, create_graph=True)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        assert a.abs().max() > 0
    again = [torch.autograd.grad(sum(g.square().sum() for g in grads), wanted) for grads in (ours, theirs)]
    assert all(torch.equal(a, b) for a, b in zip(*again, strict=True))


def test_only_what_wants_gradients_gets_them(generator: torch.Generator) -> None:
    x, others = arguments("mlp", True, generator)
    weight = others[0][1].requires_grad_()
    fast = with_gradients("mlp", others)
    fast(x)[:, 0].sum().backward()
    assert weight.grad.abs().max() > 0
    assert x.grad is None
    assert others[0][0].grad is None
    weight.requires_grad_(False)
    assert not fast(x).requires_grad


class Several(nn.Module):
    """A convolution with its pool, an operator of its own, a chain of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.first, self.last = nn.Linear(3 * 3 * 3, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.max_pool2d(torch.relu(self.features(x)), 2)
        return self.last(torch.relu(self.first(torch.cumsum(pooled.flatten(1), 1))))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Folded(Several):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize("model_of", [Several, Folded])
def test_a_module_of_several_ops(model_of: type[Several], generator: torch.Generator) -> None:
    """Trained for three steps beside eager: packed weights follow, and so do folded ones."""
    torch.manual_seed(4)
    model = model_of().eval()
    eager = copy.deepcopy(model)
    x = random(generator, (2, 2, 8, 8))
    fast = fastgraph.optimize(model, (x,))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (eager, fast)]
    for _ in range(3):
        for each, optimizer in zip((eager, fast), optimizers, strict=True):
            optimizer.zero_grad()
            each(x).square().sum().backward()
            optimizer.step()
        for ours, theirs in zip(fast.parameters(), eager.parameters(), strict=True):
            if theirs.grad is not None:
                torch.testing.assert_close(
                    ours.grad, theirs.grad, rtol=1e-4, atol=1e-5 * theirs.grad.abs().max().item()
                )
    with torch.no_grad():
        torch.testing.assert_close(fast(x), eager(x), rtol=1e-4, atol=1e-5)


def test_another_dtype_keeps_its_gradients(deep: nn.Module, generator: torch.Generator) -> None:
    """Casts of parameters are part of what gradients flow through."""
    fast, x = fastgraph.optimize(deep, (torch.zeros(2, 784),), dtype=torch.bfloat16), random(generator, (3, 784))
    gradients = []
    for model in (fast, deep):
        deep.zero_grad()
        model(x)[:, 3].sum().backward()
        gradients.append(deep.layer1.weight.grad.clone())
    ours, theirs = gradients
    assert theirs.norm() > 0
    assert (ours - theirs).norm() < 0.1 * theirs.norm()  # eight bits, and a few ReLUs that fall the other way


class TwoHeads(nn.Module):
    """Two layers whose batch-norm folds, each behind a result of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.second = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.first(x), self.second(x)


def test_parameters_of_a_result_that_is_not_used_have_no_gradient() -> None:
    torch.manual_seed(0)
    model, x = TwoHeads().eval(), torch.randn(5, 4)
    fast = fastgraph.optimize(model, (x,))
    model(x)[0].sum().backward()
    eager = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    fast(x)[0].sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == {
        n for n, g in eager.items() if g is None
    }
    assert model.second[0].weight.grad is None
    torch.testing.assert_close(model.first[0].weight.grad, eager["first.0.weight"])


class WritesOver(nn.Module):
    """A layer's input is written over behind it; eager's layer has kept a copy, since that input was transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        return y.add_(self.layer(y.transpose(0, 1)).relu().transpose(0, 1))


def test_an_input_that_is_written_over_is_kept(generator: torch.Generator) -> None:
    model = WritesOver().eval()
    fast = fastgraph.optimize(model, (torch.randn(2, 3, 4),))
    gradients = []
    for module in (model, fast):
        x = torch.linspace(-1, 1, 60).reshape(5, 3, 4).requires_grad_()
        model.zero_grad()
        module(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(gradients[1], gradients[0])
