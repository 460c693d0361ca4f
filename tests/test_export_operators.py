"""Operators on their way to ONNX: the same numbers, or a sentence that names the operator."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgraph
from fastgraph import export
from tests.reference import assert_close_to_reference, double

F = nn.functional
INFINITY, NAN = float("inf"), float("nan")


class Calls(nn.Module):
    """A module that calls one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def run(path: Path, x: Tensor) -> Tensor:
    (output,) = export.session(path).run(None, {"input": x.numpy()})
    return torch.from_numpy(output)


def assert_same_numbers(path: Path, function: Callable[..., Any], x: Tensor) -> None:
    """The file's output is as close to float64 as eager's."""
    assert_close_to_reference(run(path, x), function(x), function(double(x)))


MATRIX, IMAGE = (4, 6), (2, 4, 6, 8)
# Among them those whose translation has several nodes: torch.onnx gives what is between them shapes that are frozen.
OPERATORS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 4), (2, 3, 7)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (3, 4)), IMAGE),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, (2, 1, 3)), (1, 2, 4, 5, 6)),
    "area": (lambda x: F.interpolate(x, size=(3, 4), mode="area"), IMAGE),
    "atan2": (lambda x: torch.atan2(x, x.flip(1)), MATRIX),
    "cdist": (lambda x: torch.cdist(x, x + 1), (2, 5, 3)),
    "cdist_1": (lambda x: torch.cdist(x, x + 1, p=1), (2, 5, 3)),
    "cdist_inf": (lambda x: torch.cdist(x, x + 1, p=INFINITY), (2, 5, 3)),
    "chunk": (lambda x: x.chunk(4, 1)[1], MATRIX),
    "copysign": (lambda x: torch.copysign(x, x.flip(1)), MATRIX),
    "fft": (lambda x: torch.fft.irfft(torch.fft.rfft(x + torch.zeros(8)) * (1 + 2j)), (4, 8)),
    "fmax": (lambda x: torch.fmax(x, x.flip(1)), MATRIX),
    "fmin": (lambda x: torch.fmin(x, x.flip(1)), MATRIX),
    "hypot": (lambda x: torch.hypot(x, x.flip(1)), MATRIX),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), IMAGE),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), IMAGE),
    "remainder": (lambda x: torch.remainder(x, 0.7), MATRIX),
    "rrelu": (F.rrelu, MATRIX),
    "sign": (torch.sign, MATRIX),
    "silu": (F.silu, MATRIX),
    "trunc": (torch.trunc, MATRIX),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_comes_through_with_its_numbers(name: str, tmp_path: Path, generator: torch.Generator) -> None:
    function, shape = OPERATORS[name]
    x = 3 * torch.randn(shape, generator=generator)
    verified = export.to_onnx(Calls(function).eval(), (x,), tmp_path / "one.onnx")
    assert verified is not None
    assert shape in verified.shapes
    assert_same_numbers(tmp_path / "one.onnx", function, x)


@pytest.mark.parametrize("size", [(6, 8), (12, 12), (5, 9), (7, 3)])
def test_an_adaptive_pool_is_right_for_every_size(size: tuple[int, int], tmp_path: Path) -> None:
    """From an example whose sizes are multiples of the output's."""
    pool = nn.AdaptiveAvgPool2d((3, 4))
    export.to_onnx(pool.eval(), (torch.rand(2, 3, 6, 8),), tmp_path / "pool.onnx")
    assert_same_numbers(tmp_path / "pool.onnx", pool, torch.rand(1, 3, *size))


@pytest.mark.parametrize("name", ["copysign", "fmax", "fmin", "hypot", "trunc"])
def test_special_values_are_eagers(name: str, tmp_path: Path) -> None:
    values = torch.tensor([0.0, -0.0, 1.5, -1.5, INFINITY, -INFINITY, NAN, 3e38])
    x = torch.stack([torch.cat([row, values]) for row in values.expand(8, 8).T.contiguous()])  # each beside each
    function = OPERATORS[name][0]
    if name == "copysign":
        x = x.nan_to_num(nan=1.0, posinf=INFINITY, neginf=-INFINITY)  # ONNX cannot tell the sign of NaN
    export.to_onnx(Calls(function).eval(), (x,), tmp_path / "one.onnx", verify=False)
    actual, expected = run(tmp_path / "one.onnx", x), function(x)
    torch.testing.assert_close(actual, expected, equal_nan=True, rtol=1e-6, atol=0)
    if name == "copysign":
        assert torch.equal(actual.signbit(), expected.signbit())


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("shape", [(5,), (4, 5)])
def test_searchsorted(right: bool, shape: tuple[int, ...], tmp_path: Path, generator: torch.Generator) -> None:
    sequence = torch.randint(0, 9, shape, generator=generator).float().sort().values
    x = torch.randint(0, 9, (4, 6), generator=generator).float()
    model = Calls(lambda x: torch.searchsorted(sequence, x, right=right))
    export.to_onnx(model.eval(), (x,), tmp_path / "search.onnx")
    assert torch.equal(run(tmp_path / "search.onnx", x), model(x))


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "svd": (torch.linalg.svdvals, r"aten\._linalg_svd\.default: DispatchError: No ONNX function found"),
    "inverse": (torch.linalg.inv, r"aten\.linalg_inv_ex\.default: "),
    "cummax": (lambda x: x.cummax(1)[0], r"aten\.cummax\.default: "),
    "cdist": (lambda x: torch.cdist(x, x, p=3), r"aten\._cdist_forward\.default: .*p must be 1, 2 or inf; got 3"),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, 2), r"aten\.adaptive_max_pool2d\.default: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_names_the_operator_that_torch_onnx_does_not_know(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    function, message = REFUSED[name]
    with pytest.raises(RuntimeError, match=f"to_onnx: torch.onnx cannot export Calls: {message}") as raised:
        export.to_onnx(Calls(function).eval(), (torch.rand(2, 3, 3),), tmp_path / "no.onnx")
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


class AsksForItsValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def test_names_the_cause_where_a_model_cannot_be_captured(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="torch.export cannot capture AsksForItsValues: "):
        export.to_onnx(AsksForItsValues().eval(), (torch.ones(2, 3),), tmp_path / "no.onnx")
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_a_branch_on_values_becomes_an_if(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,))

    export.to_onnx(Branches().eval(), (torch.ones(2, 3),), tmp_path / "branches.onnx")
    for x in (torch.full((4, 3), 2.0), torch.full((4, 3), -2.0)):
        assert torch.equal(run(tmp_path / "branches.onnx", x), Branches()(x))


def test_no_grad_regions_and_optimized_ones_come_through_under_the_models_name(tmp_path: Path) -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.linear(x)
            return x * 2

    model, x = Frozen().eval(), torch.rand(2, 6)
    for name, one in (("plain", model), ("optimized", fastgraph.optimize(model, (x,), verify=False))):
        export.to_onnx(one, (x,), tmp_path / f"{name}.onnx")
        session = export.session(tmp_path / f"{name}.onnx")
        assert session.get_modelmeta().graph_name == "Frozen"
        assert session.get_modelmeta().custom_metadata_map["name"] == "Frozen"


@pytest.mark.parametrize("name", ["fft", "chunk", "grid_sample", "to_sequence"])
def test_nothing_is_said(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of those that torch, onnxscript or onnxruntime have something to say about."""
    more = {
        "grid_sample": (lambda x: F.grid_sample(x, torch.tanh(x[:, :2].permute(0, 2, 3, 1))), IMAGE),
        "to_sequence": (lambda x: torch.stack([row * 2 for row in x.unbind(1)], 1), MATRIX),
    }
    function, shape = (OPERATORS | more)[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export.to_onnx(Calls(function).eval(), (torch.rand(shape),), tmp_path / "one.onnx")
    assert capfd.readouterr() == ("", "")
