"""Depthwise convolution channels last, against float64."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgraph.kernels import native
from tests.channels_last import covering, run, same, same_everywhere
from tests.reference import check_op, random

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")

# Number, parameters and torch's function of each elementwise activation (kernels/cpu/activation.h).
ACTIVATIONS: dict[str, tuple[int, float, float, Any]] = {
    "none": (0, 0, 0, lambda x: x),
    "relu": (1, 0, 0, F.relu),
    "gelu": (2, 0, 0, F.gelu),
    "gelu_tanh": (3, 0, 0, lambda x: F.gelu(x, approximate="tanh")),
    "silu": (4, 0, 0, F.silu),
    "tanh": (5, 0, 0, torch.tanh),
    "sigmoid": (6, 0, 0, torch.sigmoid),
    "clamp": (9, -0.5, 6, lambda x: x.clamp(-0.5, 6)),
    "leaky_relu": (10, 0.1, 0, lambda x: F.leaky_relu(x, 0.1)),
    "elu": (11, 1.5, 0, lambda x: F.elu(x, 1.5)),
    "hardswish": (12, 0, 0, F.hardswish),
    "hardsigmoid": (13, 0, 0, F.hardsigmoid),
    "mish": (14, 0, 0, F.mish),
    "softplus": (15, 2, 20, lambda x: F.softplus(x, 2, 20)),
}


@dataclass(frozen=True)
class Layer:
    """A depthwise convolution; padding is (top, left, bottom, right)."""

    channels: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    multiplier: int = 1
    bias: bool = True
    residual: bool = False
    activations: tuple[str, ...] = ()

    @property
    def out_channels(self) -> int:
        return self.channels * self.multiplier

    def values(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        bias = random(generator, (self.out_channels,)) if self.bias else None
        return random(generator, (self.out_channels, 1, *self.kernel)), bias

    def kernel_of(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        module: Any = native.kernels()
        sizes = [*self.kernel, *self.stride, *self.padding, *self.dilation]
        address = bias.data_ptr() if bias is not None else 0
        plain = module.Depthwise(weight.data_ptr(), address, [self.channels, self.out_channels, self.channels, *sizes])
        calls = [ACTIVATIONS[name][:3] for name in self.activations]
        return module.DepthwiseWith(plain, self.residual, calls) if calls or self.residual else plain

    def size(self, x: torch.Tensor) -> tuple[int, ...]:
        top, left, bottom, right = self.padding
        sums = zip(x.shape[2:], (top + bottom, left + right), self.kernel, self.stride, self.dilation, strict=True)
        return x.shape[0], self.out_channels, *((i + p - d * (k - 1) - 1) // s + 1 for i, p, k, s, d in sums)

    def reference(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        top, left, bottom, right = self.padding
        x = F.pad(x, (left, right, top, bottom))
        y = F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.channels)
        y = y if residual is None else y + residual
        for name in self.activations:
            y = ACTIVATIONS[name][3](y)
        return y

    def check(self, x: torch.Tensor, generator: torch.Generator, threads: int = 1, beside: int = 0) -> torch.Tensor:
        """Compares the kernel's result with float64; returns it."""
        weight, bias = self.values(generator)
        kernel = self.kernel_of(weight, bias)
        others = [random(generator, self.size(x))] if self.residual else []
        op = lambda x, weight, bias, *others: run(kernel, [x, *others], self.size(x), threads, beside)  # noqa: E731
        return check_op(op, self.reference, x, weight, bias, *others)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("channels", [1, 3, 15, 16, 17, 31, 33, 40, 96])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (7, 7), (2, 4)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_channels(channels: int, kernel: tuple[int, int], stride: int, generator: torch.Generator) -> None:
    layer = Layer(channels, kernel, (stride, stride), (kernel[0] // 2, kernel[1] // 2) * 2)
    layer.check(random(generator, (2, channels, 9, 16)), generator, beside=channels % 3)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_width(kernel: int, stride: int, generator: torch.Generator) -> None:
    """Maps from one pixel up, either side of every block of pixels."""
    layer = Layer(19, (kernel, kernel), (stride, stride), (kernel // 2,) * 4)
    for width in range(1, 46):
        layer.check(random(generator, (1, 19, 1 + width % 5, width)), generator)


OPTIONS: dict[str, list[Any]] = {
    "channels": [1, 5, 16, 33],
    "kernel": [(1, 1), (3, 3), (5, 3), (3, 5), (7, 7), (1, 9), (2, 2)],
    "stride": [(1, 1), (2, 2), (1, 2), (2, 1), (3, 3)],
    "padding": [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 3), (3, 2, 1, 0), (9, 9, 9, 9)],
    "dilation": [(1, 1), (2, 1), (1, 2), (3, 3)],
    "multiplier": [1, 2, 3],
    "bias": [True, False],
    "residual": [False, True],
    "activations": [(), ("relu",), ("clamp",), ("silu",), ("relu", "hardswish"), ("elu", "tanh", "sigmoid")],
}
CASES = covering(OPTIONS)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_options_in_pairs(case: dict[str, Any], generator: torch.Generator) -> None:
    layer = Layer(**case)
    layer.check(random(generator, (2, layer.channels, 20, 27)), generator, threads=2, beside=layer.channels % 4)


def test_every_pair_of_options_occurs() -> None:
    def pairs(case: dict[str, Any]) -> set[tuple[str, Any, str, Any]]:
        return {(a, case[a], b, case[b]) for a in case for b in case if a < b}

    found = set().union(*map(pairs, CASES))
    assert found == {(a, x, b, y) for a in OPTIONS for b in OPTIONS if a < b for x in OPTIONS[a] for y in OPTIONS[b]}
    assert len(CASES) < 80


@settings(max_examples=150, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_anything(data: st.DataObject, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pair = lambda most: data.draw(st.tuples(st.integers(1, most), st.integers(1, most)))  # noqa: E731
    kernel, stride, dilation = pair(8), pair(4), pair(3)
    padding = data.draw(st.tuples(*[st.integers(0, 8)] * 4))
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = [max(1, span - before - after) for span, before, after in zip(spans, padding[:2], padding[2:], strict=True)]
    layer = Layer(
        data.draw(st.integers(1, 70)),
        kernel,
        stride,
        padding,
        dilation,
        data.draw(st.sampled_from([1, 1, 1, 2, 4])),
        data.draw(st.booleans()),
        data.draw(st.booleans()),
        tuple(data.draw(st.lists(st.sampled_from(sorted(ACTIVATIONS)), max_size=2))),
    )
    size = [size + data.draw(st.integers(0, most)) for size, most in zip(least, (6, 33), strict=True)]
    batch, beside = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 20))
    x = random(generator, (batch, layer.channels, *size))
    layer.check(x, generator, data.draw(st.integers(1, 3)), beside)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("channels", [3, 32, 37])
def test_activations(name: str, channels: int, generator: torch.Generator) -> None:
    for activations in ((name,), ("leaky_relu", name)):
        layer = Layer(channels, activations=activations, residual=channels == 37)
        layer.check(4 * random(generator, (1, channels, 5, 18)), generator, beside=channels % 2)


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_bits_do_not_depend_on_batch_threads_or_isa(
    kernel: int, stride: int, multiplier: int, generator: torch.Generator
) -> None:
    layer = Layer(
        96, (kernel, kernel), (stride, stride), (kernel // 2,) * 4, multiplier=multiplier, activations=("hardswish",)
    )
    weight, bias = layer.values(generator)
    x = random(generator, (3, 96, 23, 31))
    same_everywhere(lambda: layer.kernel_of(weight, bias), [x], layer.size(x))


@pytest.mark.parametrize("multiplier", [1, 2])
def test_one_row_is_divided_among_threads(multiplier: int, generator: torch.Generator) -> None:
    """[N, C, W]: the sums of the same kernel on [N, C, 1, W]."""
    layer = Layer(48, (1, 5), padding=(0, 2, 0, 2), multiplier=multiplier)
    weight, bias = layer.values(generator)
    x = random(generator, (1, 48, 1, 3000))
    y = same_everywhere(lambda: layer.kernel_of(weight, bias), [x], layer.size(x))
    flat = same_everywhere(lambda: layer.kernel_of(weight, bias), [x[:, :, 0]], (1, layer.out_channels, 3000))
    assert same(flat, y[:, :, 0])


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 3)], ids=str)
def test_few_pixels_are_divided_by_channels(size: tuple[int, int], generator: torch.Generator) -> None:
    layer = Layer(3000, (7, 7), padding=(3, 3, 3, 3), activations=("relu",))
    weight, bias = layer.values(generator)
    x = random(generator, (1, 3000, *size))
    same_everywhere(lambda: layer.kernel_of(weight, bias), [x], layer.size(x))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf"), -0.0, 1e-40, 3e38])
@pytest.mark.parametrize("activation", ["none", "relu", "clamp"])
def test_special_pixels(special: float, activation: str, generator: torch.Generator) -> None:
    layer = Layer(20, (3, 3), activations=(activation,))
    x = random(generator, (2, 20, 6, 20))
    for place in ((0, 0, 0, 0), (0, 7, 5, 19), (1, 19, 3, 9), (1, 16, 2, 13)):
        x[place] = special
    y = layer.check(x, generator)
    assert y[0, 1].isfinite().all()
    if special != special:
        assert y[0, 0].isnan().sum() == 4
        assert y[1, 19].isnan().sum() == 9


@pytest.mark.usefixtures("isa")
def test_a_weight_meets_no_padding(generator: torch.Generator) -> None:
    """An infinite weight makes NaN of a zero in the map, not of what is outside."""
    layer = Layer(20)
    weight, bias = layer.values(generator)
    weight[:, 0, 0, 0] = float("inf")
    x = random(generator, (1, 20, 4, 18)).abs() + 1
    y = run(layer.kernel_of(weight, bias), [x], layer.size(x))
    assert y[:, :, 0].isfinite().all()
    assert y[:, :, :, 0].isfinite().all()
    assert (y[:, :, 1:, 1:] == float("inf")).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_batches(batch: int, generator: torch.Generator) -> None:
    y = Layer(24, multiplier=2).check(random(generator, (batch, 24, 5, 5)), generator, 2)
    assert y.shape == (batch, 48, 5, 5)


def test_it_keeps_what_it_was_made_from(generator: torch.Generator) -> None:
    layer = Layer(17, residual=True)
    weight, bias = layer.values(generator)
    kernel = layer.kernel_of(weight, bias)  # nobody else holds the plain one
    x, other = random(generator, (1, 17, 4, 4)), random(generator, (1, 17, 4, 4))
    before = run(kernel, [x, other], (1, 17, 4, 4))
    weight.zero_()
    assert same(run(kernel, [x, other], (1, 17, 4, 4)), before)
    assert kernel.packed_bytes == 0
    assert Layer(17).kernel_of(weight, bias).packed_bytes >= 4 * (9 + 1) * 17


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ([4, 4, 4], "geometry: needs 13 sizes"),
        ([4, 4, 2, 3, 3, 1, 1, 0, 0, 0, 0, 1, 1], "geometry: groups has to be in_channels"),
        ([4, 6, 4, 3, 3, 1, 1, 0, 0, 0, 0, 1, 1], "depthwise: out_channels has to be a multiple of in_channels"),
        ([4, 4, 4, 3, 3, 0, 1, 0, 0, 0, 0, 1, 1], "depthwise: kernel, stride and dilation have to be positive"),
        ([4, 4, 4, 3, 3, 1, 1, 0, -1, 0, 0, 1, 1], "depthwise: padding must not be negative"),
    ],
)
def test_sizes_that_do_not_fit(geometry: list[int], message: str) -> None:
    module: Any = native.kernels()
    weight = torch.zeros(6, 1, 3, 3)
    with pytest.raises(ValueError, match=message):
        module.Depthwise(weight.data_ptr(), 0, geometry)


def test_a_result_of_another_size(generator: torch.Generator) -> None:
    layer = Layer(4)
    kernel = layer.kernel_of(*layer.values(generator))
    with pytest.raises(ValueError, match="depthwise: needs a result of the sizes that follow from the input's"):
        run(kernel, [random(generator, (1, 4, 5, 5))], (1, 4, 5, 6))


def test_an_activation_over_rows_is_refused(generator: torch.Generator) -> None:
    layer, module = Layer(4), native.kernels()
    plain = layer.kernel_of(*layer.values(generator))
    assert module is not None
    with pytest.raises(ValueError, match="depthwise: needs elementwise activations"):
        module.DepthwiseWith(plain, False, [(7, 0.0, 0.0)])
