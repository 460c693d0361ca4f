"""From a module to a graph: free sizes, conditions, and errors that name their cause."""

import pytest
import torch
from torch import nn

import fastgraph
from fastgraph.capture import capture
from fastgraph.captured import check_inputs, flatten_inputs
from fastgraph.models import DeepLearningModel, Net


def operators(model: nn.Module, *inputs: torch.Tensor) -> list[str]:
    graph = capture(model, inputs).graph
    return [str(n.target).split(".")[1] for n in graph.nodes if n.op == "call_function"]


def test_graphs_of_the_models() -> None:
    assert operators(DeepLearningModel().eval(), torch.zeros(1, 784)) == [
        "linear",
        "relu",
        "linear",
        "relu",
        "linear",
        "softmax",
    ]
    net = ["conv2d", "relu", "max_pool2d", "view", "linear", "relu", "linear", "relu", "sigmoid", "relu"]
    assert operators(Net().eval(), torch.zeros(1, 3, 720, 480)) == net


@pytest.mark.parametrize("batch", [0, 1, 2, 7])
def test_batch_is_free_whatever_the_example(batch: int) -> None:
    captured = capture(DeepLearningModel().eval(), (torch.zeros(batch, 784),))
    assert captured.conditions == ["x.shape[1] == 784"]
    for other in (0, 1, 5):
        check_inputs(captured, [torch.zeros(other, 784)])
        assert captured.graph_module(torch.zeros(other, 784))[0].shape == (other, 10)


def test_height_and_width_of_net_are_free() -> None:
    captured = capture(Net().eval(), (torch.zeros(1, 3, 720, 480),))
    for shape in ((2, 3, 720, 480), (1, 3, 7, 480), (0, 3, 720, 480), (119, 3, 9, 9)):
        check_inputs(captured, [torch.zeros(shape)])
    for shape in ((1, 3, 720, 481 + 4), (1, 3, 4, 480), (1, 1, 720, 480)):
        with pytest.raises(RuntimeError, match="inputs: the captured graph needs "):
            check_inputs(captured, [torch.zeros(shape)])


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.large(x) + y if x.shape[0] > 4 and x.shape[1] == y.shape[1] else self.small(x)


def test_a_branch_on_a_size_is_captured_when_it_is_taken() -> None:
    """Calling the graph of one branch with the other's sizes must not give a number."""
    model = Branches().eval()
    x, y = torch.ones(2, 5, 8), torch.ones(2, 5, 8)
    captured = capture(model, (x, y))
    with pytest.raises(RuntimeError, match=r"needs x.shape\[0\] <= 4, got x of shape \[5, 5, 8\]"):
        check_inputs(captured, [torch.ones(5, 5, 8), torch.ones(5, 5, 8)])
    fast = fastgraph.optimize(model, (x, y))
    shapes = [
        ((4, 5, 8), (9, 9, 9)),
        ((5, 5, 8), (5, 5, 8)),
        ((6, 5, 8), (6, 4, 8)),
        ((9, 5, 8), (9, 5, 8)),
        ((1, 5, 8), (1, 1, 1)),
    ]
    with torch.no_grad():
        for shape, other in shapes:
            inputs = torch.randn(shape), torch.randn(other)
            torch.testing.assert_close(fast(*inputs), model(*inputs))
    assert len(fast.captures()) == 3
    assert "captured again for inputs with " in str(fast.explain())


class Flexible(nn.Module):
    def forward(
        self, x: torch.Tensor, pair: tuple[torch.Tensor, int], *, scale: float = 1.0
    ) -> dict[str, torch.Tensor]:
        return {"sum": x + pair[0] * pair[1], "scaled": x * scale}


def test_structures_of_inputs_and_outputs() -> None:
    model, inputs = Flexible(), (torch.ones(2, 3), (torch.ones(2, 3), 4))
    fast = fastgraph.optimize(model, inputs)
    out = fast(torch.ones(5, 3), (torch.ones(5, 3), 4))
    assert out["sum"].tolist() == [[5.0] * 3] * 5
    assert out["scaled"].tolist() == [[1.0] * 3] * 5
    assert fast(torch.ones(2, 3), (torch.ones(2, 3), 5))["sum"].tolist() == [[6.0] * 3] * 2
    assert fast(torch.ones(2, 3), (7, 4), scale=2.0)["sum"].tolist() == [[29.0] * 3] * 2
    with pytest.raises(TypeError, match="missing a required argument: 'pair'"):
        fast(torch.ones(2, 3))
    with pytest.raises(
        TypeError, match=r"needs the structure of the example inputs, \(\*, \(\*, \*\)\), got \(\*, \[\*\]\)"
    ):
        fast(torch.ones(2, 3), [torch.ones(2, 3)])


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x)) * mask


@pytest.mark.parametrize("mask", [(1, 3), (2, 1), (1, 1)])
def test_a_model_that_broadcasts_along_an_axis_of_one(mask: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = Masked().eval()
    fast = fastgraph.optimize(model, (torch.ones(2, 3), torch.ones(mask)))
    fixed = [axis for axis, size in enumerate(mask) if size == 1]
    assert [c for c in fast.captured.conditions if c.endswith("== 1")] == [f"mask.shape[{axis}] == 1" for axis in fixed]
    assert len(fast.captures()) == 1
    x, other = torch.randn(5, 3), torch.randn(1 if mask[0] == 1 else 5, mask[1])
    with torch.no_grad():
        torch.testing.assert_close(fast(x, other), model(x, other))
        assert len(fast.captures()) == 1
        torch.testing.assert_close(fast(x, torch.ones(5, 3)), model(x, torch.ones(5, 3)))
        assert len(fast.captures()) == 2
    same = fastgraph.optimize(model, (torch.ones(1, 3), torch.ones(1, 3)))  # no axis along which it broadcasts
    assert not any(c.endswith("== 1") for c in same.captured.conditions)


def test_flatten_inputs_takes_keywords() -> None:
    captured = capture(nn.Linear(2, 2), (torch.ones(1, 2),))
    x = torch.ones(3, 2)
    assert flatten_inputs(captured, (), {"input": x})[0] is x
    with pytest.raises(TypeError, match="missing a required argument: 'input'"):
        flatten_inputs(captured, (), {"x": x})


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        (lambda: print, (torch.ones(1),), TypeError, "model: needs a torch.nn.Module, got builtin_function_or_method"),
        (
            lambda: nn.Linear(2, 2),
            (),
            TypeError,
            r"need the arguments of forward\(input.*missing a required argument: 'input'",
        ),
        (lambda: nn.Linear(2, 2), (1.0,), ValueError, r"example_inputs: needs at least one tensor, got \[1.0\]"),
        (lambda: nn.Linear(2, 2), torch.ones(1, 2), TypeError, "example_inputs: needs a tuple of .*, got Tensor"),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout()),
            (torch.ones(1, 2),),
            ValueError,
            r"model: needs eval mode, got 1 \(Dropout\) in training mode; call model.eval\(\) first",
        ),
        (
            lambda: nn.BatchNorm2d(2),
            (torch.ones(1, 2, 3, 3),),
            ValueError,
            "needs eval mode, got BatchNorm2d in training",
        ),
        (
            lambda: nn.Linear(2, 2),
            (torch.ones(1, 3),),
            RuntimeError,
            "model: torch.export cannot capture Linear: .*a and b must have same reduction dim|cannot be multiplied",
        ),
    ],
    ids=["no module", "empty", "no tensor", "no tuple", "dropout", "batch norm", "wrong input"],
)
def test_errors_name_the_argument(model, inputs, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fastgraph.optimize(model(), inputs)


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum().item() > 0 else x - 1


def test_a_module_that_cannot_be_exported_is_one_error_with_its_cause() -> None:
    with pytest.raises(RuntimeError, match=r"model: torch.export cannot capture DataDependent: .*[Dd]ata-dependent"):
        fastgraph.optimize(DataDependent(), (torch.ones(3),))


def test_graphs_of_a_recurrent_layer_stay_when_another_is_captured() -> None:
    """torch.export leaves copies of the layer's lists behind, which is no change of the model."""
    torch.manual_seed(0)
    model = nn.LSTM(4, 3, batch_first=True).eval()
    fast = fastgraph.optimize(model, (torch.ones(2, 5, 4),))
    with torch.no_grad():
        for batch in (2, 1, 3, 1, 2):
            x = torch.randn(batch, 5, 4)
            torch.testing.assert_close(fast(x), model(x))
        assert len(fast.captures()) == 2
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"torch.export fixes input.shape\[1\]"):
                fast(torch.ones(2, 7, 4))
        torch.testing.assert_close(fast(x), model(x))
    assert len(fast.captures()) == 2
