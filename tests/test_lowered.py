"""ATen's operators in plans: right for every operator that is lowered, in eager's strides, with the same bits."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import fastgraph
from fastgraph.kernels import native
from fastgraph.kernels.lowering import BOUND, LOWERINGS
from fastgraph.lowered import Lowered
from tests.reference import assert_close_to_reference, random

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")


class Map(nn.Module):
    """`function` of what a convolution makes of an image, and of another one."""

    def __init__(self, function: Callable[..., Any], channels: int = 18, axes: int = 2) -> None:
        super().__init__()
        kind = nn.Conv2d if axes == 2 else nn.Conv1d
        self.first, self.second = kind(3, channels, 3, padding=1), kind(3, channels, 1)
        self.function = function
        self.slope = nn.Parameter(torch.rand(channels))
        self.norm = (nn.BatchNorm2d if axes == 2 else nn.BatchNorm1d)(channels)
        self.groups, self.transposed = nn.GroupNorm(3, channels), nn.ConvTranspose2d(channels, 5, 2, 2)
        self.last = kind(channels, 7, 3, stride=2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, self.first(x), self.second(x))


class Rows(nn.Module):
    """`function` of what a layer makes of rows."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(19, 24), nn.Linear(24, 9), nn.LayerNorm(24)
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, self.first(x))


MAPS: dict[str, Callable[..., Any]] = {
    "one": lambda m, x, y: x,
    "activations": lambda m, x, y: F.leaky_relu(F.relu6(x), 0.2) + F.elu(F.hardswish(y), 0.7),
    "more activations": lambda m, x, y: F.mish(F.hardsigmoid(x)) * F.softplus(y, 1.5, 3) - F.silu(F.hardtanh(x)),
    "clamps": lambda m, x, y: x.clamp(-0.5, 0.7) + y.clamp_min(0.1) + x.clamp_max(0.2).relu() + F.gelu(y),
    "residual": lambda m, x, y: F.relu(x + y),
    "residual of two": lambda m, x, y: torch.tanh(torch.sigmoid(x) + y).sub(x, alpha=0.3),
    "broadcast": lambda m, x, y: x * y.mean((2, 3), keepdim=True) + y.mean((2, 3))[:, :, None, None],
    "per channel": lambda m, x, y: F.prelu(x, m.slope) / (2 + y.abs()),
    "norms": lambda m, x, y: m.groups(F.relu(m.norm(F.relu(x)))) + y,
    "concatenation": lambda m, x, y: F.relu(torch.cat([x, y, F.max_pool2d(y, 3, 1, 1)], 1)),
    "nested concatenations": lambda m, x, y: torch.cat([torch.cat([x, y], 1).relu(), torch.cat([x, y, x + y], 1)], 1),
    "concatenation with itself": lambda m, x, y: torch.cat([x, x, y], 1),
    "rows concatenated": lambda m, x, y: torch.cat([x, y], 2),
    "pools": lambda m, x, y: (
        F.max_pool2d(x, (3, 2), (2, 1), (1, 0), ceil_mode=True) + F.avg_pool2d(y, (3, 2), (2, 1), (1, 0), True)
    ),
    "averages": lambda m, x, y: F.avg_pool2d(x, 3, 2, 1, False, False) + F.avg_pool2d(y, 3, 2, 1, divisor_override=5),
    "adaptive": lambda m, x, y: F.adaptive_avg_pool2d(x, (3, 4)) + F.adaptive_avg_pool2d(y, 1),
    "flattened": lambda m, x, y: F.adaptive_avg_pool2d(x, 2).flatten(1) + y.mean((2, 3)).repeat(1, 4),
    "resized": lambda m, x, y: F.interpolate(x, scale_factor=2) + F.interpolate(y, scale_factor=2, mode="bilinear"),
    "to a size": lambda m, x, y: (
        F.interpolate(F.max_pool2d(x, 2), x.shape[2:], mode="bilinear", align_corners=True) + y
    ),
    "transposed": lambda m, x, y: F.relu(m.transposed(x)) + m.transposed(y),
    "permuted": lambda m, x, y: (x + y).permute(0, 2, 3, 1) * 2,
    "permuted and back": lambda m, x, y: F.layer_norm(x.permute(0, 2, 3, 1), (18,)).permute(0, 3, 1, 2) + y,
    "split": lambda m, x, y: torch.cat([x.chunk(2, 1)[1], y.split([4, 14], 1)[0]], 1),
    "shuffled": lambda m, x, y: x.view(x.shape[0], 2, 9, *x.shape[2:]).transpose(1, 2).flatten(1, 2) + y,
    "several results": lambda m, x, y: (x, F.relu(x), y + x, y.mean((2, 3))),
    "in place": lambda m, x, y: F.relu(x.add_(y), inplace=True).mul_(0.5),
    "constants": lambda m, x, y: x * m.slope[:, None, None] + m.slope.exp()[None, :, None, None] - 1,
    "strided": lambda m, x, y: m.last(F.relu(x) + y),
    "other axes": lambda m, x, y: (2 * x).softmax(1) * y.mean(1, True) + y.amax(2, True) - x.sum(3, True),
}
LINES: dict[str, Callable[..., Any]] = {
    "pools": lambda m, x, y: F.max_pool1d(x, 3, 2, 1) + F.avg_pool1d(y, 3, 2, 1),
    "adaptive": lambda m, x, y: F.adaptive_avg_pool1d(x, 4) + F.adaptive_avg_pool1d(y, 1),
    "norm": lambda m, x, y: m.last(F.relu(m.norm(F.relu(x)))),
    "over time": lambda m, x, y: torch.cat([x.amax(2), y.mean(2)], 1),
}
ROWS: dict[str, Callable[..., Any]] = {
    "unary": lambda m, x: m.second(x.sin() + x.cos() * x.abs().sqrt() + (1 + x.square()).rsqrt()),
    "more": lambda m, x: m.second(x.exp().reciprocal() + x.expm1() - (1 + x.abs()).log() + x.abs().log1p() + x.erf()),
    "whole": lambda m, x: m.second(x).floor() + m.second(x).ceil().neg() + torch.maximum(m.second(x), -m.second(x)),
    "powers": lambda m, x: m.second(x**3) - torch.minimum(m.second(x), m.second(x) ** 2) / 3 + (2 - m.second(x)),
    "norm": lambda m, x: m.second(F.relu(m.norm(x)) + x),
    "softmax": lambda m, x: m.second((2 * x).softmax(-1)) + (m.second(x) * 2).log_softmax(-1),
    "reduced": lambda m, x: m.second(x - x.mean(-1, True) + x.sum(-1, True) + x.amax(-1, True) - x.amin(-1, True)),
    "features": lambda m, x: m.second(torch.cat([x[..., :7], (x * 2)[..., 7:]], -1)),
}
CASES = {
    **{f"map {name}": (Map, f, (2, 3, 9, 8)) for name, f in MAPS.items()},
    **{f"line {name}": (lambda f: Map(f, axes=1), f, (2, 3, 21)) for name, f in LINES.items()},
    **{f"rows {name}": (Rows, f, (2, 19)) for name, f in ROWS.items()},
    **{f"sequences {name}": (Rows, f, (2, 5, 19)) for name, f in ROWS.items()},
}


def optimized(name: str) -> tuple[nn.Module, Any, tuple[int, ...]]:
    make, function, size = CASES[name]
    torch.manual_seed(7)
    model = make(function)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    model.eval()
    return model, fastgraph.optimize(model, (torch.randn(size),)), size


def plans_of(fast: Any) -> list[Any]:
    program = fast.specializations[0]._program
    return list(program.fresh_state().plans.values())


def forms(fast: Any) -> list[Lowered | None]:
    return [form for plan in plans_of(fast) for form in plan._forms.values()]


def parts(outputs: Any) -> tuple[torch.Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.parametrize("name", CASES)
def test_right_and_in_eagers_strides(name: str, generator: torch.Generator) -> None:
    model, fast, size = optimized(name)
    exact = copy.deepcopy(model).double()
    for batch in (1, 3):
        x = random(generator, (batch, *size[1:]))
        with torch.no_grad():
            results, expected, reference = fast(x), model(x), exact(x.double())
        for y, e, r in zip(parts(results), parts(expected), parts(reference), strict=True):
            assert_close_to_reference(y, e, r)
            assert y.stride() == e.stride()
    assert forms(fast)
    assert None not in forms(fast)


@pytest.mark.parametrize("name", CASES)
def test_same_bits(name: str, generator: torch.Generator) -> None:
    """Of an image alone, in a batch, on any number of threads, and in the first call as in the second."""
    _, fast, size = optimized(name)
    x = random(generator, (5, *size[1:]))
    with torch.no_grad():
        torch.set_num_threads(1)
        first = parts(fast(x))
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for y, again in zip(first, parts(fast(x)), strict=True):
                assert torch.equal(y, again)
            for y, alone in zip(first, parts(fast(x[2:3])), strict=True):
                assert torch.equal(y[2:3], alone)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("map")])
def test_channels_last_images(name: str, generator: torch.Generator) -> None:
    model, fast, size = optimized(name)
    x = random(generator, (3, *size[1:])).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(2):
            for y, e in zip(parts(fast(x)), parts(model(x)), strict=True):
                torch.testing.assert_close(y, e)
                assert y.stride() == e.stride()


def test_every_operator_is_among_them() -> None:
    """Every one that is lowered runs in a plan of the cases above."""
    seen: set[Any] = set()
    for name in CASES:
        _, fast, _ = optimized(name)
        program = fast.specializations[0]._program
        nodes = [node for graph in program._stretches.values() for node in graph.nodes]
        seen.update(node.target for node in nodes)
        seen.update(program._bound[node.target].target for node in nodes if node.target in program._bound)
    others = {torch.ops.aten.conv1d.padding, torch.ops.aten.conv2d.padding}  # below
    assert {*LOWERINGS, *BOUND} - seen - others == set()


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("axes", [1, 2])
def test_padding_by_name(padding: str, axes: int, generator: torch.Generator) -> None:
    kind = nn.Conv1d if axes == 1 else nn.Conv2d
    model = nn.Sequential(kind(3, 8, 4, padding=padding, dilation=2), nn.ReLU(), kind(8, 4, 2, padding=padding)).eval()
    x = random(generator, (2, 3, *[13] * axes))
    fast = fastgraph.optimize(model, (x,))
    with torch.no_grad():
        assert_close_to_reference(fast(x), model(x), copy.deepcopy(model).double()(x.double()))
    assert None not in forms(fast)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -0.0])
@pytest.mark.parametrize("name", ["map residual", "map pools", "map concatenation", "rows norm", "line pools"])
def test_values_out_of_the_ordinary(name: str, value: float, generator: torch.Generator) -> None:
    """NaN and infinities go where eager's go."""
    model, fast, size = optimized(name)
    x = random(generator, (2, *size[1:]))
    x[0].flatten()[7] = value
    with torch.no_grad():
        for y, e in zip(parts(fast(x)), parts(model(x)), strict=True):
            assert torch.equal(y.isnan(), e.isnan())
            assert torch.equal(y.isposinf(), e.isposinf())
            assert torch.equal(y.isneginf(), e.isneginf())


@pytest.mark.parametrize(
    ("name", "size"),
    [("map one", (2, 4, 9, 8)), ("map adaptive", (2, 3, 9)), ("rows norm", (2, 18)), ("line pools", (3,))],
)
def test_wrong_sizes_are_eagers_errors(name: str, size: tuple[int, ...], generator: torch.Generator) -> None:
    model, fast, _ = optimized(name)
    x = random(generator, size)
    with torch.no_grad():
        try:
            expected = model(x)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                fast(x)
        else:
            torch.testing.assert_close(fast(x), expected)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(4), nn.MaxPool1d(2)])
def test_maps_without_a_batch_axis(pool: nn.Module, generator: torch.Generator) -> None:
    """[C, H, W] is no [N, C, W]: an operator over two axes takes maps of its own rank, all else is ATen's."""
    model = nn.Sequential(pool, nn.Linear(4, 3)).eval()
    x = random(generator, (3, 8, 8) if not isinstance(pool, nn.MaxPool1d) else (3, 8))
    fast = fastgraph.optimize(model, (x,))
    with torch.no_grad():
        assert_close_to_reference(fast(x), model(x), copy.deepcopy(model).double()(x.double()))


def test_weights_that_change(generator: torch.Generator) -> None:
    model, fast, size = optimized("map norms")
    x = random(generator, size)
    with torch.no_grad():
        before = fast(x)
        for parameter in model.parameters():
            parameter.mul_(1.25)
        assert not torch.equal(before, fast(x))
        torch.testing.assert_close(fast(x), model(x))


def test_files_run_plans(tmp_path: Any, generator: torch.Generator) -> None:
    _, fast, size = optimized("map concatenation")
    fastgraph.save(fast, tmp_path / "file")
    again = fastgraph.load(tmp_path / "file")
    x = random(generator, size)
    with torch.no_grad():
        assert torch.equal(again(x), fast(x))
    assert forms(again)
    assert None not in forms(again)


SPLITS: dict[str, Callable[..., Any]] = {
    "a power": lambda m, x, y: F.relu(m.transposed(F.relu(x).pow(1.7) + y)),
    "a transposed convolution": lambda m, x, y: F.relu(F.conv_transpose2d(F.relu(x), m.first.weight, stride=2)) + 1,
    "bounds in tensors": lambda m, x, y: m.last(torch.clamp(x, y, y + 1)) * 2,
    "scales": lambda m, x, y: m.last(F.selu(x) + y) * 2,
    "a sum in float64": lambda m, x, y: m.last(x * y.sum((2, 3), True, dtype=torch.float64).float()),
}


@pytest.mark.parametrize("name", SPLITS)
def test_what_has_no_kernel_splits_a_plan(name: str, generator: torch.Generator) -> None:
    """The convolutions before it, at least, still run in kernels."""
    torch.manual_seed(3)
    model = Map(SPLITS[name]).eval()
    fast = fastgraph.optimize(model, (random(generator, (2, 3, 9, 8)),))
    x = random(generator, (3, 3, 9, 8))
    with torch.no_grad():
        for y, e, r in zip(
            parts(fast(x)), parts(model(x)), parts(copy.deepcopy(model).double()(x.double())), strict=True
        ):
            assert_close_to_reference(y, e, r)
    assert forms(fast)
    assert None not in forms(fast)
    assert {row.kernel.split(" ")[0] for row in fast.explain() if row.node == "conv2d"} == {"conv"}
    assert "ATen" in {row.kernel for row in fast.explain()}


def test_a_stretch_without_kernels_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    """What cannot be lowered at a shape is ATen's, and explain() says so."""
    monkeypatch.setitem(LOWERINGS, torch.ops.aten.relu.default, refuse)
    model, fast, size = optimized("map residual")
    x = random(generator, size)
    with torch.no_grad():
        assert torch.equal(fast(x), model(x))
    assert {row.kernel for row in fast.explain()} == {"ATen"}
    assert forms(fast) == [None]


def refuse(low: Any, *arguments: Any) -> Any:
    from fastgraph.kernels.lowering import NotLowered

    raise NotLowered("refused")


def test_concatenations_are_written_in_place() -> None:
    """Convolutions write into their parts: no copy but that of the result to eager's strides."""
    _, fast, _ = optimized("map concatenation")
    (form,) = forms(fast)
    assert form is not None
    kinds = [type(kernel).__name__ for kernel, _, _ in form.steps]
    assert kinds.count("Copy") <= 1, kinds


def nodes_of(fast: Any) -> list[fx.Node]:
    return [n for n in fast.specializations[0]._program.graph.nodes if n.op not in ("placeholder", "output")]


def test_a_whole_network_is_one_call() -> None:
    _, fast, _ = optimized("map norms")
    assert [node.target for node in nodes_of(fast)] == ["plan_0"]
