"""optimize and OptimizedModule: results, explain(), and bad input."""

import copy

import pytest
import torch
from torch import nn

import fastgraph
from tests.reference import assert_close_to_reference, random


@pytest.mark.parametrize("batch", [0, 1, 2, 16, 77])
def test_deep_learning_model(batch: int, deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(1, 784),))
    x = random(generator, (batch, 784))
    with torch.no_grad():
        exact = copy.deepcopy(deep).double()(x.double())
        assert_close_to_reference(fast(x), deep(x), exact)
    assert batch < 2 or exact.std() > 0.1


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_net(batch: int, net: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(net, (torch.zeros(1, 3, 720, 480),))
    x = random(generator, (batch, 3, 720, 480))
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double())
        for image in (x, x.to(memory_format=torch.channels_last)):  # eager's view takes the first only
            assert_close_to_reference(fast(image), net(x), exact)
    assert batch == 0 or exact.std() > 0.01


def test_explain_shows_one_fused_op(deep: nn.Module, net: nn.Module) -> None:
    for model, shape, op, operators in ((deep, (1, 784), "mlp", 6), (net, (1, 3, 720, 480), "conv_pool_mlp", 10)):
        explanation = fastgraph.optimize(model, (torch.zeros(shape),)).explain()
        assert len(explanation) == operators
        assert len({row.becomes for row in explanation}) == 1
        assert {row.kernel.split(" ")[0] for row in explanation} == {op}
        assert op in str(explanation)
        assert "verified on the example inputs" in str(explanation)


def test_explain_gives_the_reason_of_a_refusal() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.MaxPool2d(2)).eval()
    rows = {row.node: row for row in fastgraph.optimize(model, (torch.zeros(1, 3, 9, 9),)).explain()}
    assert rows["max_pool2d"].reason == "by rule relu_after_pool; not conv_pool: groups=3 (the kernel takes 1)"
    assert rows["conv2d"].kernel == f"conv ({fastgraph.cpu_capability()})"


# ---- bad input: the same kind of error as eager, naming the argument


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 783), r"needs x.shape\[1\] == 784, got x of shape \[2, 783\]"),
        (torch.ones(2, 784).double(), "mat1 and mat2 must have the same dtype, but got Double and Float"),
        (torch.ones(2, 784, dtype=torch.int64), "input: needs a floating-point dtype, got torch.int64"),
        (torch.ones(2, 784, dtype=torch.bool), "input: needs a floating-point dtype, got torch.bool"),
        (torch.ones(2, 784, device="meta"), "x: needs device cpu, got meta"),
    ],
    ids=["features", "double", "integer", "bool", "device"],
)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_bad_input(x: torch.Tensor, message: str, grad: bool, deep: nn.Module) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    with torch.set_grad_enabled(grad):
        fast(torch.ones(2, 784))
        with pytest.raises(RuntimeError, match=message):
            fast(x)
        assert fast(torch.ones(2, 784)).shape == (2, 10)


def test_another_rank_is_as_in_eager(deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    x = random(generator, (2, 3, 784))
    with torch.no_grad():
        torch.testing.assert_close(fast(x), deep(x))
        for model in (fast, deep):  # softmax(dim=1) of a vector
            with pytest.raises(IndexError, match="Dimension out of range"):
                model(x[0, 0])
    assert len(fast.captures()) == 2


@pytest.mark.parametrize("x", [None, 3, [1.0], "x"])
def test_what_is_no_tensor(x, deep: nn.Module) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    with pytest.raises(TypeError, match="needs "):
        fast(x)


def test_wrong_arguments_of_optimize(deep: nn.Module) -> None:
    with pytest.raises(ValueError, match="engine: needs one of auto, direct, inductor, max-autotune, got 'turbo'"):
        fastgraph.optimize(deep, (torch.zeros(1, 784),), engine="turbo")
    with pytest.raises(ValueError, match="dtype: needs one of torch.float32, .*, got torch.int8"):
        fastgraph.optimize(deep, (torch.zeros(1, 784),), dtype=torch.int8)
