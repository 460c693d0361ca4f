"""explain(): a reason for everything in ATen, nested graphs, the share of FLOPs, and whether the same bits hold."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgraph
from fastgraph.explanation import Explanation
from fastgraph.kernels import native
from fastgraph.kernels.library import Op
from fastgraph.models import DeepLearningModel, Net

pytestmark = pytest.mark.skipif(native.cpu_capability() == "aten", reason="needs the compiled kernels")


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.first, self.second = function, nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("buffer", torch.ones(8))
        self.embedding, self.norm, self.lstm = nn.Embedding(9, 8), nn.LayerNorm(8), nn.LSTM(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def table(model: nn.Module, *inputs: Any, **options: Any) -> Explanation:
    return fastgraph.optimize(model.eval(), inputs, **options).explain()


def branches(m: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.cond(x.sum() > 0, lambda x: torch.relu(m.first(x)), lambda x: torch.tanh(m.second(x)), (x,))


def autocast(m: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return m.first(x).float()


X = torch.randn(4, 8)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.RReLU(), nn.Linear(8, 4)), X),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.LPPool2d(2, 2)), torch.randn(2, 1, 8, 8)),
        (nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.LSTM(6, 3)), torch.randn(2, 1, 8)),
        (nn.Sequential(nn.ConvTranspose2d(1, 4, 3), nn.Softplus(), nn.AvgPool2d(2)), torch.randn(2, 1, 8, 8)),
        (nn.Sequential(nn.Conv3d(1, 4, 3), nn.MaxPool3d(2), nn.Flatten()), torch.randn(2, 1, 8, 8, 8)),
        (nn.Sequential(nn.Linear(8, 8), *[nn.Tanh(), nn.Sigmoid()] * 3, nn.CELU()), X),
        (nn.Sequential(nn.Linear(8, 8), nn.Softmax(1), nn.Tanh(), nn.PReLU(), nn.Hardshrink(), nn.Mish()), X),
        (Function(lambda m, x: x @ x.t()), X),
        (Function(lambda m, x: (m.first(x) + m.second(x), m.norm(x) * m.buffer.exp(), x[:, 1:].topk(2).values)), X),
        (Function(lambda m, x: m.embedding(x.long() % 9)[:, 0].relu_() + m.first(x).clamp(min=0)), X),
        (Function(lambda m, x: F.scaled_dot_product_attention(x, x, m.first(x)).view(-1) + x.shape[0]), X),
        (Function(branches), X),
        (Function(autocast), X),
        (DeepLearningModel().double(), torch.rand(2, 784, dtype=torch.float64)),
    ],
)
def test_every_operator_in_aten_has_a_reason(model: nn.Module, x: torch.Tensor) -> None:
    rows = table(model, x).rows
    assert [row.node for row in rows if row.kernel == "ATen" and not row.reason] == []
    assert any(row.kernel == "ATen" for row in rows)


@pytest.mark.parametrize(
    ("model", "x", "node", "reason"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.CELU()), X, "celu", "no kernel for aten.celu"),
        (
            nn.Conv2d(1, 4, 3),
            torch.randn(1, 8, 8),
            "conv2d",
            "a kernel needs constant fp32 weights on the CPU and a batch axis",
        ),
        (nn.Conv3d(1, 4, 3), torch.randn(2, 1, 8, 8, 8), "conv3d", "no kernel for a convolution over three axes"),
        (nn.ReLU(), X, "relu", "not mlp: it does not follow a linear layer"),
        (Function(lambda m, x: x * m.buffer.exp()), X, "exp", "computed once, from parameters"),
        (Function(lambda m, x: m.first(x)[1:]), X, "slice_1", "a view"),
        (
            Function(autocast),
            X,
            "submod_1.linear",
            "inside wrap_with_autocast, which is left as it is",
        ),
    ],
)
def test_reasons(model: nn.Module, x: torch.Tensor, node: str, reason: str) -> None:
    assert {row.node: row.reason for row in table(model, x)}[node] == reason


def test_nested_graphs_are_rewritten_and_shown() -> None:
    model = Function(branches).eval()
    fast = fastgraph.optimize(model, (X,))
    kernels = {row.node: row.kernel.split(" ")[0] for row in fast.explain()}
    assert kernels["true_graph_0.linear"] == kernels["true_graph_0.relu"] == "mlp"
    assert kernels["false_graph_0.linear"] == kernels["false_graph_0.tanh"] == "mlp"
    assert fast.explain().rows[-1].flops >= 0
    with torch.no_grad():
        for x in (X.abs(), -X.abs()):
            torch.testing.assert_close(fast.rewritten.graph_module(x)[0], model(x))
    assert "mlp" in fast.rewritten.graph_module.true_graph_0.code


def test_the_share_of_flops_is_the_first_line() -> None:
    assert str(table(DeepLearningModel(), torch.rand(2, 784))).startswith(
        "100 % of the FLOPs are in fused kernels: 6 of 6"
    )
    half = table(Function(lambda m, x: m.first(x) @ m.second(x).t()), torch.randn(8, 8))
    assert str(half).startswith("67 % of the FLOPs are in fused kernels: 2 of 4 operators; 2 stay in ATen")
    nothing = table(nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU()), torch.randn(2, 1, 8, 8, 8))
    assert nothing.summary == "0 % of the FLOPs are in fused kernels: 0 of 2 operators; 2 stay in ATen"
    assert sum(row.flops for row in nothing if row.node == "conv3d") == 2 * 2 * 4 * 6**3 * 3**3
    planned = table(nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU()), torch.randn(2, 1, 8))
    assert planned.summary == "100 % of the FLOPs are in fused kernels: 2 of 2 operators; 0 stay in ATen"


YES = "same bits: yes; a row's do not depend on the batch, the number of threads, or the instruction set"
NO = "same bits: not promised, since a row's may depend on the batch, threads or instruction set in "


@pytest.mark.parametrize(
    ("model", "x", "expected"),
    [
        (DeepLearningModel(), torch.rand(2, 784), YES),
        (Net(), torch.zeros(1, 3, 720, 480), YES),
        (nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(), nn.Flatten(), nn.Linear(8, 4)), X, YES),
        (nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()), X, YES),
        (Function(lambda m, x: m.first(x) + m.embedding(x.long() % 9)[:, 0]), X, YES),
        (Function(lambda m, x: m.first(x).add(x, alpha=2)), X, YES),
        (
            Function(lambda m, x: m.norm(x).cumsum(1)),
            X,
            NO + "aten.layer_norm (1), aten.cumsum (1)",
        ),
        (Function(lambda m, x: m.norm(m.first(x)).exp()), X, YES),
        (nn.Conv2d(1, 4, 3), torch.randn(2, 1, 8, 8), YES),
        (nn.Conv3d(1, 4, 3), torch.randn(2, 1, 8, 8, 8), NO + "aten.conv3d (1)"),
        (Function(branches), X, NO + "aten.sum (1)"),
    ],
)
def test_same_bits(model: nn.Module, x: torch.Tensor, expected: str) -> None:
    assert expected in table(model, x).notes


def test_same_bits_are_those_of_fp32() -> None:
    notes = table(DeepLearningModel(), torch.rand(2, 784), dtype=torch.bfloat16).notes
    assert NO + "fastgraph.mlp (1)" in notes


def test_the_direct_engine_runs_the_rewritten_nested_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    result_size = Op.result_size

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return result_size(*arguments)

    monkeypatch.setattr(Op, "result_size", counted)  # once a call on packed weights
    model = Function(branches).eval()
    fast = fastgraph.optimize(model, (X,), verify=False)
    with torch.no_grad():
        for x in (X.abs(), -X.abs()):
            torch.testing.assert_close(fast(x), model(x))
    assert calls == 2
    assert fast.state_dict().keys() == model.state_dict().keys()
