"""Rules linear and bias: other ways to write a linear layer, which become one where that is exact."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgraph
from tests.test_rewrite_simplify import rewritten

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))


class Weights(nn.Module):
    """A function of the input and of a weight [in, out], a bias and a buffer."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.function = function
        self.weight = nn.Parameter(torch.randn(6, 5, generator=generator))
        self.bias = nn.Parameter(torch.randn(5, generator=generator))
        self.linear = nn.Linear(6, 5, bias=False)
        self.register_buffer("buffer", torch.randn(6, 5, generator=generator))

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def in_place(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = x @ m.weight
    y += m.bias
    return torch.relu_(y)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x @ m.weight,
        lambda m, x: x @ m.weight + m.bias,
        lambda m, x: m.bias + torch.mm(x, m.weight),
        lambda m, x: torch.addmm(m.bias, x, m.weight),
        lambda m, x: m.linear(x) + m.bias,
        lambda m, x: torch.relu(x @ m.linear.weight.t()),
        lambda m, x: x @ (m.weight * m.buffer).exp(),
        in_place,
        lambda m, x: F.threshold(x @ m.weight, 0, 0),
        lambda m, x: F.hardtanh(x @ m.weight, 0, float("inf")),
        lambda m, x: x[0] @ m.weight,
        lambda m, x: x.reshape(2, 2, 6) @ m.weight + m.bias,
    ],
)
def test_is_one_mlp(function: Any) -> None:
    names, _ = rewritten(Weights(function), X)
    assert names.count("mlp") == 1
    assert not set(names) & {"matmul", "mm", "addmm", "add", "add_", "relu_", "threshold", "hardtanh", "linear"}


@pytest.mark.parametrize(
    ("function", "rule", "reason"),
    [
        (lambda m, x: x @ x.t(), "linear", "its weight t is computed anew in every call"),
        (lambda m, x: x @ m.weight[:, 0], "linear", "its second operand has 1 dimensions, not 2"),
        (lambda m, x: torch.addmm(m.buffer[:4], x, m.weight), "linear", "what it adds is no bias"),
        (lambda m, x: torch.addmm(m.bias, x, m.weight, beta=2), "linear", "it scales what it adds"),
        (lambda m, x: F.linear(x, x), "mlp", "its weight x is an input of the graph"),
        (lambda m, x: F.linear(x, x * 2), "mlp", "its weight mul is computed anew in every call"),
        (lambda m, x: m.linear(x).clamp(min=0), "relu", "its gradient where the input is 0 is 1, that of relu 0"),
    ],
)  # fmt: skip
def test_stays_with_a_reason(function: Any, rule: str, reason: str) -> None:
    assert rewritten(Weights(function), X)[1][rule] == reason


def test_a_weight_that_is_written_is_none() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.buffer.view(-1)[3] += 1
        return x @ m.buffer

    model = Weights(forward).eval()
    fast = fastgraph.optimize(model, (X,))
    reasons = [row.reason for row in fast.explain() if row.node == "matmul"]
    assert reasons == ["not linear: its weight buffer is written by add_"]
    with torch.no_grad():
        for _ in range(3):
            before = model.buffer.clone()
            y = fast(X)
            assert model.buffer.view(-1)[3] == before.view(-1)[3] + 1
            torch.testing.assert_close(y, X @ model.buffer)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_dtypes_that_no_kernel_takes_stay(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).to(dtype).eval()
    table = fastgraph.optimize(model, (X.to(dtype),)).explain()
    assert {row.kernel for row in table} == {"ATen"}
    name = str(dtype).removeprefix("torch.")
    assert table.rows[0].reason == f"not mlp: no kernel computes in {name} on cpu"


def test_gradients_reach_a_transposed_weight() -> None:
    model = Weights(lambda m, x: torch.relu(x @ m.weight + m.bias)).eval()
    fast = fastgraph.optimize(model, (X,))
    grads = []
    for module in (model, fast):
        module(X).square().sum().backward()
        grads.append([p.grad.clone() for p in (model.weight, model.bias)])
        model.zero_grad()
    torch.testing.assert_close(*grads)
