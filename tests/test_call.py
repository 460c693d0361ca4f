"""Which way a call takes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import fastgraph
from fastgraph.call import WAYS, Call


class Doubled(torch.autograd.Function):
    """Twice its input, with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 3


class CustomGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Doubled.apply(self.linear(x))


class Subclass(torch.Tensor):
    pass


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class WithoutGradients(nn.Linear):
    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


Situation = tuple[Callable[[], nn.Module], str, Callable[[], AbstractContextManager[Any]], type[torch.Tensor], str]
linear = lambda: nn.Linear(4, 3)  # noqa: E731
SITUATIONS: dict[str, Situation] = {
    "no gradients": (linear, "direct", torch.no_grad, torch.Tensor, "without_gradients"),
    "gradients": (linear, "direct", nullcontext, torch.Tensor, "with_gradients"),
    "forward in no_grad": (lambda: WithoutGradients(4, 3), "direct", nullcontext, torch.Tensor, "without_gradients"),
    "a mode": (linear, "direct", Functions, torch.Tensor, "node_by_node"),
    "a subclass": (linear, "direct", torch.no_grad, Subclass, "node_by_node"),
    "autocast": (linear, "direct", lambda: torch.autocast("cpu"), torch.Tensor, "by_the_captured_graph"),
    "inductor": (linear, "inductor", nullcontext, torch.Tensor, "by_the_compiler"),
    "inductor, a mode": (linear, "inductor", Functions, torch.Tensor, "by_the_compiler"),
    "inductor, autocast": (linear, "inductor", lambda: torch.autocast("cpu"), torch.Tensor, "by_the_captured_graph"),
    "a gradient of its own": (CustomGradient, "direct", nullcontext, torch.Tensor, "by_the_original"),
    "that, autocast": (CustomGradient, "direct", lambda: torch.autocast("cpu"), torch.Tensor, "by_the_original"),
    "that, no gradients": (CustomGradient, "direct", torch.no_grad, torch.Tensor, "without_gradients"),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_way_of_a_call(name: str) -> None:
    model_of, engine, context, kind, expected = SITUATIONS[name]
    fast = fastgraph.optimize(model_of().eval(), (torch.ones(2, 4),), engine=engine, verify=False)
    x = torch.ones(2, 4).as_subclass(kind)
    with context():
        call = Call(fast._graphs, (x,), {})
        assert next(way.__name__ for condition, way in WAYS if condition(call)) == expected
