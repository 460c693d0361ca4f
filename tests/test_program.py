"""The direct engine: which calls take a fast path, and that all others are right too."""

import copy

import pytest
import torch
from torch import nn

import fastgraph
from fastgraph.kernels import native
from fastgraph.kernels.bound import Bound
from fastgraph.kernels.library import Op
from fastgraph.program import with_fast_path
from tests.reference import random

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")


@pytest.fixture
def eager() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).eval()


def test_the_second_call_of_a_shape_passes(eager: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(eager, (torch.zeros(2, 6),), verify=False)
    for batch in (1, 2, 7):
        x = random(generator, (batch, 6))
        with torch.no_grad():
            first = fast(x)
            assert torch.equal(fast._fast_paths[0](x), first)
            torch.testing.assert_close(first, eager(x))


def test_a_replaced_layer_has_a_fast_path_of_its_own(eager: nn.Module) -> None:
    fast = fastgraph.optimize(eager, (torch.zeros(2, 6),), verify=False)
    with torch.no_grad():
        before = fast(torch.ones(2, 6))
        (path,) = fast._fast_paths
        eager[0].weight = nn.Parameter(eager[0].weight * 2)
        fast.get_submodule("0").weight = eager[0].weight
        after = fast(torch.ones(2, 6))
        assert fast._fast_paths[0] is not path
        assert path(torch.ones(2, 6)) is None
        torch.testing.assert_close(after, eager(torch.ones(2, 6)))
        assert not torch.equal(before, after)


def test_a_copy_has_a_fast_path_of_its_own(eager: nn.Module) -> None:
    fast = fastgraph.optimize(eager, (torch.zeros(2, 6),))
    with torch.no_grad():
        fast(torch.ones(2, 6))
        copied = copy.deepcopy(fast)
        copied(torch.ones(2, 6))
    assert len(copied._fast_paths) == 1
    assert copied._fast_paths[0] is not fast._fast_paths[0]


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Sigmoid()), nn.Sequential(nn.Linear(3, 3), nn.ELU())]
)
def test_folded_weights_and_several_operators_have_a_fast_path(model: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(model.eval(), (torch.ones(2, 3),))
    x = random(generator, (2, 3))
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
        assert torch.equal(fast._fast_paths[0](x), fast(x))
        assert fast._fast_paths[0](x[:1]) is None
        model[0].weight.mul_(2)
        assert fast._fast_paths[0](x) is None
        torch.testing.assert_close(fast(x), model(x))
    assert fast._fast_paths[0](x) is None
    assert fast(x).requires_grad


class Structured(nn.Module):
    """Two inputs, results in a dictionary; a buffer that counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls.add_(1)
        return {"sum": self.linear(x) + y, "calls": self.calls.clone()}


def test_a_fast_path_for_several_inputs_and_results(generator: torch.Generator) -> None:
    torch.manual_seed(2)
    eager = Structured()
    x, y = random(generator, (2, 3)), random(generator, (2, 3))
    fast = fastgraph.optimize(eager, (x, y), verify=False)
    fast.calls.zero_()
    with torch.no_grad():
        for call in range(1, 5):
            result = fast(x, y)
            assert list(result) == ["sum", "calls"]
            assert result["calls"] == call
            torch.testing.assert_close(result["sum"], eager.linear(x) + y)
        assert fast._fast_paths[0](x, y) is not None
        assert fast._fast_paths[0](x) is None
        with pytest.raises(TypeError, match="missing a required argument: 'y'"):
            fast(x)
        with pytest.raises(RuntimeError, match="inputs: the captured graph needs"):
            fast(x[:, :2], y)


def test_a_result_of_none_is_computed_once() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> None:
            self.calls.add_(x.sum())

    fast = fastgraph.optimize(Counts(), (torch.ones(2),), verify=False)
    fast.calls.zero_()
    with torch.no_grad():
        for call in range(1, 4):
            assert fast(torch.ones(2)) is None
            assert fast.calls == 2 * call


@pytest.mark.parametrize("value", [torch._neg_view(torch.ones(3, 6)), torch._efficientzerotensor((3, 6))])
def test_values_that_memory_does_not_hold(value: torch.Tensor, eager: nn.Module) -> None:
    """A negated view shares the memory of what it negates; a tensor of lazy zeros has none."""
    fast = fastgraph.optimize(eager, (torch.zeros(2, 6),))
    with torch.no_grad():
        fast(torch.ones(3, 6))
        for _ in range(2):
            torch.testing.assert_close(fast(value), eager(value))


def test_transforms_of_the_module(eager: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(eager, (torch.zeros(2, 6),))
    x = random(generator, (3, 2, 6))
    with torch.no_grad():
        fast(x[0])
        torch.testing.assert_close(torch.vmap(fast)(x), torch.vmap(eager)(x))
        doubled = {name: p * 2 for name, p in fast.state_dict().items()}
        torch.testing.assert_close(
            torch.func.functional_call(fast, doubled, (x[0],)), torch.func.functional_call(eager, doubled, (x[0],))
        )


class Several(nn.Module):
    """Two chains with an operator of its own between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 9), nn.Linear(9, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cumsum(self.second(torch.relu(self.first(x))), 1))


def test_each_of_several_ops_has_a_fast_path(generator: torch.Generator) -> None:
    torch.manual_seed(2)
    eager = Several().eval()
    fast = fastgraph.optimize(eager, (torch.zeros(2, 6),), verify=False)
    with torch.no_grad():
        for batch in (1, 2, 7, 2):
            x = random(generator, (batch, 6))
            torch.testing.assert_close(fast(x), eager(x))
        eager.first.weight.mul_(2)  # shared: the fast paths are those of the new weights
        torch.testing.assert_close(fast(x), eager(x))
        ops = [node.target for node in fast.rewritten.graph.nodes]
    assert ops.count(torch.ops.fastgraph.mlp.default) == 2


def test_with_fast_path(generator: torch.Generator) -> None:
    weight, bias = random(generator, (4, 6)), random(generator, (4,))
    op = Bound(Op.named("mlp"), [weight], [bias], ["relu"])
    called = []

    class Counted(Bound):
        def __call__(self, input: torch.Tensor) -> torch.Tensor:
            called.append(tuple(input.shape))
            return super().__call__(input)

    call = with_fast_path(Counted(op.op, *op.arguments))
    for x in (
        random(generator, (2, 6)),
        random(generator, (2, 6)),
        random(generator, (6, 3)).t(),
        random(generator, (5, 6)),
    ):
        assert torch.equal(call(x), op(x))
    assert called == [(2, 6), (3, 6), (5, 6)]  # a form once, and what is not contiguous always


def test_parameters_of_inference_mode_stay_in_aten_and_the_others_do_not(generator: torch.Generator) -> None:
    """A change of theirs cannot be seen: nothing is packed or folded from them, and they are read anew in each call."""
    with torch.inference_mode():
        layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 6), nn.ReLU()]
    eager = nn.Sequential(*layers, nn.Linear(6, 6), nn.ReLU()).eval()
    x = random(generator, (3, 1, 6, 6))
    fast = fastgraph.optimize(eager, (x,))
    unseen = [r.operator for r in fast.explain().rows if "inference_mode" in (r.reason or "")]
    assert unseen == ["aten.batch_norm.default", "aten.linear.default"]
    assert fast.explain().rows[-1].becomes.startswith("mlp")
    for changed in (eager[0].weight, eager[1].running_mean, eager[3].bias, eager[5].weight):
        with torch.inference_mode(), torch.no_grad():
            changed.add_(1)
            torch.testing.assert_close(fast(x), eager(x))


def test_a_model_of_inference_mode_is_eagers(generator: torch.Generator) -> None:
    with torch.inference_mode():
        eager = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).eval()
    fast = fastgraph.optimize(eager, (torch.zeros(2, 6),))
    x = random(generator, (3, 6))
    with torch.inference_mode():
        fast(x)
        assert fast._fast_paths[0](x) is not None  # the quick way, with another weight too
        eager[0].weight.mul_(2)
        assert torch.equal(fast(x), eager(x))
