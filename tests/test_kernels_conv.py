"""The native convolution against float64, channels last, with what follows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastgraph.kernels import native
from tests.reference import LastProduct, assert_close_to_reference, random

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")

NAN = float("nan")
SENTINEL = -7777.0

# name: number (enum Activation of kernels/cpu/activation.h), two parameters, the same on tensors
ACTIVATIONS: dict[str, tuple[int, float, float, Any]] = {
    "relu": (1, 0, 0, F.relu),
    "gelu": (2, 0, 0, F.gelu),
    "silu": (4, 0, 0, F.silu),
    "sigmoid": (6, 0, 0, torch.sigmoid),
    "relu6": (9, 0, 6, F.relu6),
    "leaky_relu": (10, 0.125, 0, lambda x: F.leaky_relu(x, 0.125)),
    "elu": (11, 1.5, 0, lambda x: F.elu(x, 1.5)),
    "hardswish": (12, 0, 0, F.hardswish),
}


def module() -> Any:
    return native.kernels()


@dataclass(frozen=True)
class Layer:
    """A convolution; pads: top, left, bottom, right."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    groups: int = 1
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def kernel(self, bf16: bool = False) -> Any:
        out, inputs, kh, kw = self.weight.shape
        geometry = [inputs * self.groups, out, self.groups, kh, kw, *self.stride, *self.pads, *self.dilation]
        bias = 0 if self.bias is None else self.bias.data_ptr()
        return module().Conv(self.weight.contiguous().data_ptr(), bias, geometry, bf16)

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        top, left, bottom, right = self.pads
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, self.stride, 0, self.dilation, self.groups)

    def fits(self, height: int, width: int) -> bool:
        _, _, kh, kw = self.weight.shape
        top, left, bottom, right = self.pads
        spans = ((kh - 1) * self.dilation[0] + 1, (kw - 1) * self.dilation[1] + 1)
        return height + top + bottom >= spans[0] and width + left + right >= spans[1]


def layer(
    generator: torch.Generator, inputs: int, outputs: int, kernel: tuple[int, int], bias: bool = True, **options: Any
) -> Layer:
    groups = options.get("groups", 1)
    size = inputs // groups * kernel[0] * kernel[1]
    weight = random(generator, (outputs, inputs // groups, *kernel), size**-0.5)
    return Layer(weight, random(generator, (outputs,)) if bias else None, **options)


def between(value: float, sizes: Sequence[int], before: int = 3, behind: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """A channels-last tensor that is a slice of a wider one, full of `value`, and the wider one."""
    batch, channels, height, width = sizes
    wide = torch.full((batch + 2, height, width, before + channels + behind), value)
    return wide[1:-1, ..., before : before + channels].permute(0, 3, 1, 2), wide


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The values of x: "nchw", "channels_last", or "slice", channels of a wider tensor of NaN."""
    if layout != "slice":
        return x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
    view, _ = between(NAN, x.shape)
    return view.copy_(x)


def run(kernel: Any, inputs: list[torch.Tensor], sizes: Sequence[int], threads: int = 1) -> torch.Tensor:
    """The kernel's result, from a slice of a wider tensor of which nothing else may be written."""
    y, wide = between(SENTINEL, sizes)
    kernel.run(inputs, [y], threads)
    result = y.clone(memory_format=torch.contiguous_format)
    assert not (result == SENTINEL).any()
    y.fill_(SENTINEL)
    assert (wide == SENTINEL).all()
    return result


def check(conv: Layer, x: torch.Tensor, layout: str = "channels_last", threads: int = 1) -> torch.Tensor:
    eager = conv.reference(x)
    with LastProduct() as last:
        exact = conv.reference(x.double())
    y = run(conv.kernel(), [laid_out(x, layout)], eager.shape, threads)
    assert_close_to_reference(y, eager, exact, last.sums)
    return y


# name: (inputs, outputs, kernel, options), (height, width)
CASES: dict[str, tuple[tuple[Any, ...], dict[str, Any], tuple[int, int]]] = {
    "stem": ((3, 33, (7, 7)), {"stride": (2, 2), "pads": (3, 3, 3, 3)}, (40, 36)),
    "lenet": ((1, 6, (5, 5)), {}, (28, 28)),
    "point": ((31, 70, (1, 1)), {}, (9, 13)),
    "point_stride": ((48, 17, (1, 1)), {"stride": (2, 2)}, (14, 15)),
    "same": ((17, 64, (3, 3)), {"pads": (1, 1, 1, 1)}, (21, 18)),
    "many_taps": ((200, 33, (3, 3)), {"pads": (1, 1, 1, 1)}, (7, 9)),
    "small_maps": ((40, 50, (3, 3)), {"pads": (1, 1, 1, 1)}, (2, 3)),
    "one_pixel": ((40, 50, (3, 3)), {"pads": (1, 1, 1, 1)}, (1, 1)),
    "asymmetric": ((16, 15, (2, 3)), {"stride": (2, 1), "pads": (0, 1, 2, 3)}, (11, 12)),
    "dilated": ((5, 24, (3, 2)), {"stride": (1, 2), "pads": (2, 3, 2, 1), "dilation": (2, 3)}, (12, 19)),
    "groups": ((12, 51, (3, 3)), {"groups": 3, "pads": (1, 1, 1, 1)}, (9, 10)),
    "groups_small": ((12, 51, (3, 3)), {"groups": 3, "pads": (1, 1, 1, 1)}, (4, 3)),
    "audio": ((16, 40, (1, 9)), {"stride": (1, 2), "pads": (0, 4, 0, 4)}, (1, 200)),
    "all_padding": ((3, 16, (5, 5)), {"pads": (4, 4, 4, 4)}, (1, 1)),
}


def case(generator: torch.Generator, name: str, batch: int = 2, bias: bool = True) -> tuple[Layer, torch.Tensor]:
    sizes, options, map_size = CASES[name]
    return layer(generator, *sizes, bias=bias, **options), random(generator, (batch, sizes[0], *map_size))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "slice"])
@pytest.mark.usefixtures("isa")
def test_geometries(name: str, layout: str, generator: torch.Generator) -> None:
    for bias, threads in ((True, 1), (False, 3)):
        check(*case(generator, name, bias=bias), layout, threads)


@pytest.mark.parametrize("name", CASES)
def test_same_bits(name: str, generator: torch.Generator) -> None:
    """Over instruction sets, threads, layouts and the batch around an image."""
    conv, x = case(generator, name, batch=3)
    sizes = conv.reference(x).shape
    before, results = module().isa(), []
    for isa in module().isas():
        module().select_isa(isa)
        kernel = conv.kernel()
        for threads in (1, 2, 3):
            results += [run(kernel, [laid_out(x, layout)], sizes, threads) for layout in ("nchw", "slice")]
        single = [run(kernel, [laid_out(image[None], "channels_last")], (1, *sizes[1:])) for image in x]
        results.append(torch.cat(single))
    module().select_isa(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.usefixtures("isa")
def test_empty_batch(generator: torch.Generator) -> None:
    conv, x = case(generator, "same", batch=0)
    assert run(conv.kernel(), [x], conv.reference(x).shape).numel() == 0


def with_epilogue(
    conv: Layer, x: torch.Tensor, residual: torch.Tensor | None, activations: list[str], layout: str, threads: int
) -> None:
    calls = [ACTIVATIONS[name][:3] for name in activations]
    kernel = module().ConvWith(conv.kernel(), residual is not None, calls)

    def reference(dtype: torch.dtype) -> torch.Tensor:
        y = conv.reference(x.to(dtype))
        y = y if residual is None else y + residual.to(dtype)
        for name in activations:
            y = ACTIVATIONS[name][3](y)
        return y

    with LastProduct() as last:
        exact = reference(torch.float64)
    inputs = [laid_out(t, layout) for t in (x, residual) if t is not None]
    y = run(kernel, inputs, exact.shape, threads)
    assert_close_to_reference(y, reference(torch.float32), exact, last.sums)


@pytest.mark.parametrize("name", ["stem", "point", "same", "many_taps", "groups", "small_maps"])
@pytest.mark.parametrize("activations", [[], ["relu"], ["relu6"], ["silu"], ["relu", "elu"], ["leaky_relu", "relu6"]])
@pytest.mark.usefixtures("isa")
def test_epilogues(name: str, activations: list[str], generator: torch.Generator) -> None:
    conv, x = case(generator, name)
    residual = random(generator, conv.reference(x).shape)
    with_epilogue(conv, x, None, activations, "channels_last", 2)
    with_epilogue(conv, x, residual, activations, "slice", 1)
