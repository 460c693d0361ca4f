"""torch.compile(model, backend="fastgraph")."""

import pytest
import torch
from torch import nn

import fastgraph
from fastgraph.models import DeepLearningModel, Net
from tests.compiled import spy
from tests.reference import assert_close_to_reference, random


@pytest.fixture(autouse=True)
def reset_dynamo() -> None:
    torch.compiler.reset()


def test_it_is_registered() -> None:
    assert "fastgraph" in torch.compiler.list_backends()


@pytest.mark.parametrize(("model_type", "shape"), [(DeepLearningModel, (784,)), (Net, (3, 720, 480))])
def test_models_at_every_batch(model_type: type[nn.Module], shape: tuple[int, ...], generator: torch.Generator) -> None:
    model = model_type().eval()
    compiled = torch.compile(model, backend="fastgraph", fullgraph=True)
    for batch in (1, 2, 3):
        x = random(generator, (batch, *shape))
        with torch.no_grad():
            exact = torch.func.functional_call(
                model, {k: v.double() for k, v in model.state_dict().items()}, x.double()
            )
            assert_close_to_reference(compiled(x), model(x), exact)


def test_it_fuses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy(monkeypatch)
    with torch.no_grad():
        torch.compile(DeepLearningModel().eval(), backend="fastgraph")(torch.zeros(2, 784))
        torch.compile(Net().eval(), backend="fastgraph")(torch.zeros(1, 3, 720, 480))
    assert seen.take() == ["mlp", "conv_pool_mlp"]


def test_gradients_and_fresh_weights(generator: torch.Generator) -> None:
    model = DeepLearningModel()
    compiled = torch.compile(model, backend="fastgraph")
    x = random(generator, (4, 784))
    (compiled(x)[:, 2]).sum().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x)[:, 2].sum().backward()
    for grad, p in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(grad, p.grad)
    with torch.no_grad():
        model.layer3.bias.add_(torch.arange(10.0))
        torch.testing.assert_close(compiled(x), model(x))


def test_dropout_in_training_mode_keeps_dropping(generator: torch.Generator) -> None:
    model = nn.Sequential(nn.Linear(50, 50), nn.Dropout(0.5)).train()
    compiled = torch.compile(model, backend="fastgraph")
    x = random(generator, (10, 50))
    with torch.no_grad():
        assert 0.3 < (compiled(x) == 0).float().mean() < 0.7
        assert not torch.equal(compiled(x), compiled(x))


def test_batch_norm_in_training_mode_keeps_learning(generator: torch.Generator) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)).train()
    compiled = torch.compile(model, backend="fastgraph")
    before = model[1].running_mean.clone()
    compiled(random(generator, (4, 2, 8, 8)))
    assert not torch.equal(model[1].running_mean, before)


def test_graph_breaks(generator: torch.Generator) -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(x))
            torch._dynamo.graph_break()
            return torch.tanh(self.b(x))

    model = Breaks().eval()
    x = random(generator, (4, 6))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="fastgraph")(x), model(x))


def test_version() -> None:
    assert fastgraph.__version__ == "0.1.0"
