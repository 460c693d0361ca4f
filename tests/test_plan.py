"""Stretches of a program that run as one native plan: the numbers, bits and aliases of the program without them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastgraph
from fastgraph.kernels import native
from fastgraph.plan import Plan
from fastgraph.program import Program

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")


class LeNet(nn.Module):
    """Two convolutions with pools, a view by the input's batch, three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = x.view(x.size(0), -1)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))  # type: ignore[no-any-return]


class Heads(nn.Module):
    """Several layers read one value; all results are the caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        body = torch.relu(self.body(x))
        return self.one(body), self.two(body), body


class ShownTwice(Heads):
    """A value and the same memory in another shape leave the module."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        body = torch.relu(self.body(x))
        flat = body.view(-1, 2, 8)
        return self.one(body), flat, self.two(flat.view(-1, 16))


class Between(Heads):
    """An operator of torch in the middle, and one that reads nothing of the stretch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        body = torch.relu(self.body(x))
        other = torch.cumsum(x, 1)
        both = self.one(body).sum() + self.two(body)
        return self.two(torch.relu(self.body(other))) + both


class WrittenOver(Heads):
    """What a stretch has read is written over behind it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 2
        first = self.one(torch.relu(self.body(x)))
        second = self.two(torch.relu(self.body(x)))
        x.add_(1)
        third = self.two(torch.relu(self.body(x)))
        return first.sum() + second + third


class Bilinear(nn.Module):
    """Two inputs, one result."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(8, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.last(torch.relu(self.left(x))), torch.relu(self.right(y))


def images(batch: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(batch, 1, 28, 28),)


def rows(batch: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(batch, 8),)


def two(batch: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(batch, 8), torch.randn(batch, 4)


MODELS: dict[type[nn.Module], Callable[[int], tuple[torch.Tensor, ...]]] = {
    LeNet: images,
    Heads: rows,
    ShownTwice: rows,
    Between: rows,
    WrittenOver: rows,
    Bilinear: two,
}


def program_of(fast: fastgraph.OptimizedModule) -> Program:
    return fast.specializations[0]._program


def plain(results: Any) -> list[torch.Tensor]:
    return [results] if isinstance(results, torch.Tensor) else list(results)


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_the_numbers_and_bits_of_kernel_by_kernel(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, inputs = kind().eval(), MODELS[kind]
    planned = fastgraph.optimize(model, inputs(2))
    monkeypatch.setattr("fastgraph.program.with_plans", lambda program, *others: (program, {}))
    stepwise = fastgraph.optimize(model, inputs(2))
    assert not program_of(stepwise)._stretches
    assert program_of(planned)._stretches or kind is Bilinear
    for batch in (1, 3, 70):
        x = inputs(batch)
        for _ in range(3):  # the general way, then the fast one
            with torch.no_grad():
                results = plain(planned(*x))
                for actual, expected, eager in zip(results, plain(stepwise(*x)), plain(model(*x)), strict=True):
                    assert torch.equal(actual, expected)
                    assert actual.stride() == eager.stride()
                    torch.testing.assert_close(actual, eager)
        addresses = [result.untyped_storage().data_ptr() for result in results]
        with torch.no_grad():
            eagers = [result.untyped_storage().data_ptr() for result in plain(model(*x))]
        assert [addresses.index(a) for a in addresses] == [eagers.index(a) for a in eagers]


def test_a_whole_network_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are not called one by one any more once inputs of that form were seen."""
    fast = fastgraph.optimize(LeNet().eval(), images(2))
    assert program_of(fast)._only_call() == "plan_0"
    calls = []
    monkeypatch.setattr(Plan, "__call__", lambda self, *inputs: calls.append(inputs))
    with torch.inference_mode():
        assert fast(*images(2)).shape == (2, 10)
    assert not calls


def test_new_weights_are_packed_anew() -> None:
    model = LeNet().eval()
    fast = fastgraph.optimize(model, images(2))
    x = images(2)
    with torch.no_grad():
        fast(*x)
        model.fc3.bias.add_(100)
        torch.testing.assert_close(fast(*x), model(*x))


def test_gradients() -> None:
    torch.manual_seed(0)
    model = LeNet().eval()
    fast = fastgraph.optimize(model, images(2))
    x = images(2)
    fast(*x).square().sum().backward()
    ours = [p.grad for p in model.parameters()]
    model.zero_grad()
    model(*x).square().sum().backward()
    for actual, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(actual, parameter.grad)


@pytest.mark.parametrize("how", ["strided", "negated", "empty", "float64", "wrong size"])
def test_inputs_that_the_plan_does_not_take(how: str) -> None:
    model = LeNet().eval()
    fast = fastgraph.optimize(model, images(2))
    x = {
        "strided": torch.randn(2, 1, 28, 56)[..., ::2],
        "negated": torch.randn(2, 1, 28, 28, dtype=torch.complex64).conj().imag,
        "empty": torch.randn(0, 1, 28, 28),
        "float64": torch.randn(2, 1, 28, 28, dtype=torch.float64),
        "wrong size": torch.randn(2, 1, 27, 28),
    }[how]
    with torch.no_grad():
        try:
            expected = model(x)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                fast(x)
            return
        for _ in range(3):
            torch.testing.assert_close(fast(x), expected)


def test_a_stretch_has_no_more_values_than_a_fast_path_takes() -> None:
    """Nine results: they are computed one by one."""

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(9))

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [layer(x) for layer in self.layers]

    model = Many().eval()
    fast = fastgraph.optimize(model, rows(2))
    assert not program_of(fast)._stretches
    x = rows(3)
    with torch.no_grad():
        for actual, expected in zip(fast(*x), model(*x), strict=True):
            torch.testing.assert_close(actual, expected)
