"""Simplifications: what each rule takes, what it refuses and why, and that numbers stay."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgraph
from fastgraph.capture import capture
from fastgraph.rewrite import rewrite
from tests.reference import assert_close_to_reference, double


def rewritten(model: nn.Module, *inputs: torch.Tensor) -> tuple[list[str], dict[str, str]]:
    """Operators after the rewrite, and reasons of refusals by rule. The numbers are compared on the way."""
    model = model.eval()
    result = rewrite(capture(model, inputs).graph_module)
    with torch.no_grad():
        eager, actual = model(*inputs), result.graph_module(*inputs)[0]
        state = {name: double(tensor) for name, tensor in model.state_dict().items()}
        reference = torch.func.functional_call(model, state, double(inputs))
    assert_close_to_reference(actual, eager, reference)
    names = [str(n.target).split(".")[1] for n in result.graph.nodes if n.op == "call_function"]
    return names, {r.rule: r.reason for r in result.refusals}


class Function(nn.Module):
    """A module that is one function of its input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


IMAGE = torch.randn(2, 3, 12, 14, generator=torch.Generator().manual_seed(1))


def test_dropout_in_eval_mode_goes() -> None:
    for layer in (nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout(), nn.Dropout(inplace=True)):
        assert rewritten(nn.Sequential(layer, nn.Tanh()), IMAGE)[0] == ["tanh"]


def test_dropout_that_is_always_on_stays() -> None:
    result = rewrite(capture(Function(lambda x: F.dropout(x, 0.5, True)), (IMAGE,)).graph_module)
    assert [r.reason for r in result.refusals] == ["it is in training mode"]
    assert "dropout" in result.graph_module.code


@pytest.mark.parametrize("first", [torch.relu, torch.sigmoid, lambda x: torch.softmax(x, 1)])
def test_relu_of_what_is_never_negative_goes(first) -> None:
    names, _ = rewritten(Function(lambda x: torch.relu(first(x))), IMAGE)
    assert len(names) == 1


def test_other_relus_stay() -> None:
    assert rewritten(Function(lambda x: torch.relu(torch.tanh(x))), IMAGE)[0] == ["tanh", "relu"]


def test_relu_moves_behind_the_pool() -> None:
    assert rewritten(Function(lambda x: F.max_pool2d(torch.relu(x), 3, 2, 1)), IMAGE)[0] == ["max_pool2d", "relu"]


def test_relu_that_is_used_elsewhere_does_not_move() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(x)
        return F.max_pool2d(y, 3, 1, 1) + y

    names, reasons = rewritten(Function(function), IMAGE)
    assert names == ["relu", "max_pool2d", "add"]
    assert reasons["relu_after_pool"] == "relu is used elsewhere too"


def test_relu_and_pool_with_nan() -> None:
    x = IMAGE.clone()
    x[0, 0, 3, 4], x[1, 2, 5, 6] = float("nan"), float("-inf")
    names, _ = rewritten(Function(lambda x: F.max_pool2d(torch.relu(x), 2)), x)
    assert names == ["max_pool2d", "relu"]


def randomised(norm: nn.Module) -> nn.Module:
    """Statistics and weights as after training."""
    generator = torch.Generator().manual_seed(2)
    for name, tensor in norm.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if name == "running_var" else -0.4))
    return norm


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_folds_into_a_convolution(bias: bool, affine: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, bias=bias), randomised(nn.BatchNorm2d(5, affine=affine)))
    assert "batch_norm" not in rewritten(model, IMAGE)[0]


@pytest.mark.parametrize(
    ("convolution", "shape"),
    [
        (nn.Conv1d(3, 5, 3, padding="same"), (2, 3, 9)),
        (nn.Conv3d(3, 5, 2), (2, 3, 4, 5, 3)),
        (nn.ConvTranspose1d(3, 5, 3, 2), (2, 3, 9)),
        (nn.ConvTranspose2d(3, 5, 3, 2, bias=False), (2, 3, 5, 4)),
        (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 6)),
    ],
)
def test_batch_norm_folds_into_other_convolutions(convolution: nn.Module, shape: tuple[int, ...]) -> None:
    norm = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](convolution.out_channels)
    assert "batch_norm" not in rewritten(nn.Sequential(convolution, randomised(norm)), torch.randn(shape))[0]


def test_batch_norm_is_folded_in_float64() -> None:
    """Sums that almost cancel the running mean: folded in fp32 the error would be twice eager's own."""
    conv, norm = nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16)
    x = 3 + 0.05 * torch.randn(3, 16, 12, 12, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        y = conv(x)
        norm.running_mean.copy_(y.mean((0, 2, 3)))
        norm.running_var.copy_(y.var((0, 2, 3)))
    model = nn.Sequential(conv, norm).eval()
    exact = nn.utils.fusion.fuse_conv_bn_eval(*copy.deepcopy(model).double())
    result = fastgraph.optimize(model, (x,))
    with torch.no_grad():
        assert torch.equal(result.rewritten.graph_module(x)[0], exact.float()(x))
    assert "verified" in str(result.explain())


def test_batch_norm_folds_into_a_linear_layer() -> None:
    model = nn.Sequential(nn.Linear(14, 5), randomised(nn.BatchNorm1d(5)), nn.ReLU())
    names, _ = rewritten(model, IMAGE[0, 0])
    assert "batch_norm" not in names
    assert names[-1] == "mlp"


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3), randomised(nn.BatchNorm2d(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class InputWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = randomised(nn.BatchNorm2d(5))

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.norm(F.conv2d(x, weight))


@pytest.mark.parametrize(
    ("model", "inputs", "reason"),
    [
        (nn.Sequential(nn.Tanh(), randomised(nn.BatchNorm2d(3))), (IMAGE,), "it does not follow a convolution"),
        (Shared(), (IMAGE,), "conv2d is used elsewhere too"),
        (
            nn.Sequential(nn.Linear(14, 5), randomised(nn.BatchNorm1d(12))),
            (IMAGE[0],),
            "its channels are not the linear layer's features",
        ),
        (nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, track_running_stats=False)), (IMAGE,), "it is in"),
        (InputWeight(), (IMAGE, torch.ones(5, 3, 3, 3)), "weights or statistics are inputs of the graph"),
        (
            nn.Sequential(nn.Conv1d(3, 5, 3), randomised(nn.BatchNorm1d(12))),
            (torch.randn(3, 14),),
            "its channels are not the convolution's: the input has no batch axis",
        ),
        (
            nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), randomised(nn.BatchNorm2d(6))),
            (torch.randn(2, 4, 5, 6),),
            "it follows a transposed convolution with groups=2",
        ),
    ],
)  # fmt: skip
def test_batch_norm_that_stays(model: nn.Module, inputs: tuple[torch.Tensor, ...], reason: str) -> None:
    names, reasons = rewritten(model, *inputs)
    assert "batch_norm" in names
    assert reasons["batch_norm"].startswith(reason)


def test_folded_batch_norm_follows_its_statistics_and_passes_gradients() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), randomised(nn.BatchNorm2d(5))).eval()
    fast = fastgraph.optimize(model, (IMAGE,))
    with torch.no_grad():
        before = fast(IMAGE)
        model[1].running_var.mul_(4)
        torch.testing.assert_close(fast(IMAGE), model(IMAGE))
        assert not torch.allclose(fast(IMAGE), before)
    fast(IMAGE).square().sum().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(IMAGE).square().sum().backward()
    for grad, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-3)


def test_in_place_activation_over_a_result_becomes_the_activation() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    assert rewritten(model, IMAGE)[0] == ["conv_pool"]


def test_in_place_activation_over_an_input_or_a_view_stays() -> None:
    names, reasons = rewritten(Function(lambda x: torch.relu_(x.clone().view(-1))), IMAGE)
    assert "relu_" in names
    assert reasons["in_place"] == "it writes over an input or a view"


def test_nothing_moves_over_a_write() -> None:
    """The linear layer reads x before it is written to; fused with what follows, it would read it after."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(14, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            y = self.linear(x)
            x.mul_(100)
            return torch.relu(y) + x.sum()

    names, reasons = rewritten(Model(), IMAGE[0, 0])
    assert names == ["clone", "mlp", "mul_", "relu", "sum", "add"]
    assert reasons["mlp"] == "mul_ writes in place between its parts"
