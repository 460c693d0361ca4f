"""Rule mlp: which chains fuse, and where they end."""

import torch
import torch.nn.functional as F
from torch import nn

from fastgraph.capture import capture
from fastgraph.models import DeepLearningModel
from fastgraph.rewrite import rewrite
from tests.test_rewrite_simplify import rewritten

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))


def activations(model: nn.Module, x: torch.Tensor = X) -> list[list[str]]:
    """Activation strings of every mlp in the rewritten graph."""
    rewritten(model, x)
    graph = rewrite(capture(model.eval(), (x,)).graph_module).graph
    return [node.args[3] for node in graph.nodes if str(node.target) == "fastgraph.mlp.default"]


def test_deep_learning_model_is_one_mlp() -> None:
    names, reasons = rewritten(DeepLearningModel(), torch.randn(3, 784))
    assert names == ["mlp"]
    assert reasons == {}


def test_every_activation_joins() -> None:
    layers = [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.ReLU()]
    model = nn.Sequential(
        *(m for layer in layers for m in (nn.Linear(6, 6), layer)), nn.Linear(6, 3), nn.LogSoftmax(-1)
    )
    assert activations(model) == [["gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "relu", "log_softmax"]]


def test_activations_in_a_row_join_up_to_four() -> None:
    model = nn.Sequential(nn.Linear(6, 4), *[nn.Tanh()] * 5)
    assert activations(model) == [["tanh+tanh+tanh+tanh"]]


def test_no_bias_and_no_activation() -> None:
    assert activations(nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 4))) == [["none", "none"]]
    assert activations(nn.Linear(6, 5)) == [["none"]]


def test_softmax_ends_a_chain() -> None:
    assert activations(nn.Sequential(nn.Linear(6, 5), nn.Softmax(1), nn.Linear(5, 4))) == [["softmax"], ["none"]]


def test_softmax_over_another_dimension_stays_outside_with_its_reason() -> None:
    names, reasons = rewritten(nn.Sequential(nn.Linear(6, 5), nn.Softmax(0)), X)
    assert names == ["mlp", "softmax"]
    assert reasons["mlp"] == "softmax over dimension 0 is not over the features"


def test_softmax_that_changes_the_dtype_stays_outside() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.softmax(self.linear(x), -1, dtype=torch.float64)

    graph = rewrite(capture(Model(), (X,)).graph_module)
    assert [r.reason for r in graph.refusals] == ["softmax changes the dtype"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.third(x + torch.tanh(self.second(x)))


def test_a_value_that_is_used_twice_ends_a_chain() -> None:
    assert activations(Residual()) == [["relu"], ["tanh"], ["none"]]


class SharedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.relu(self.layer(x)), self.layer.weight) + F.linear(x, x)[:, :1]


def test_shared_weights_and_activations_as_weights() -> None:
    assert activations(SharedWeight()) == [["relu", "none"]]
    assert rewritten(SharedWeight(), X)[1]["mlp"] == "its weight x is an input of the graph"


def test_leading_dimensions() -> None:
    assert activations(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(2, 3, 6)) == [
        ["relu", "none"]
    ]
    assert activations(nn.Sequential(nn.Linear(6, 5), nn.Softmax(-1)), X[0]) == [["softmax"]]
