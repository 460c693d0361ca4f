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
    inputs = [laid_out(x, layout)]
    if residual is not None:
        inputs.append(laid_out(residual, "slice" if layout == "slice" else "channels_last"))
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


@settings(max_examples=150, deadline=None)
@given(
    batch=st.integers(0, 3),
    groups=st.sampled_from([1, 1, 1, 2, 3, 8]),
    inputs=st.sampled_from([1, 3, 4, 8, 15, 16, 17, 31, 33, 64]),
    outputs=st.sampled_from([1, 3, 4, 8, 15, 16, 17, 31, 33, 64, 80]),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)) | st.just((3, 3)) | st.just((1, 1)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)) | st.just((1, 1)),
    pads=st.tuples(*[st.integers(0, 3)] * 4) | st.just((1, 1, 1, 1)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)) | st.just((1, 1)),
    layout=st.sampled_from(["nchw", "channels_last", "slice"]),
    activations=st.lists(st.sampled_from(sorted(ACTIVATIONS)), max_size=2),
    residual=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_any_geometry(
    batch,
    groups,
    inputs,
    outputs,
    size,
    kernel,
    stride,
    pads,
    dilation,
    layout,
    activations,
    residual,
    threads,
    seed,
):
    generator = torch.Generator().manual_seed(seed)
    options = {"groups": groups, "stride": stride, "pads": pads, "dilation": dilation}
    per_group = min(inputs, 17) if groups > 1 else inputs
    conv = layer(
        generator, per_group * groups, min(outputs, 17) * groups if groups > 1 else outputs, kernel, seed % 2, **options
    )
    assume(conv.fits(*size))
    x = random(generator, (batch, per_group * groups, *size))
    out = conv.reference(x)
    with_epilogue(conv, x, random(generator, out.shape) if residual else None, activations, layout, threads)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 26])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 3)])
@pytest.mark.usefixtures("isa")
def test_three_by_three_on_small_maps(size: int, pads: tuple[int, int, int, int], generator: torch.Generator) -> None:
    """Winograd's tiles at every border, and maps that have too few of them."""
    for inputs, outputs in ((33, 40), (70, 16)):
        conv = layer(generator, inputs, outputs, (3, 3), pads=pads)
        for width in (size, 2 * size + 1):
            if conv.fits(size, width):
                check(conv, random(generator, (3, inputs, size, width)), "slice", 2)


@pytest.mark.parametrize("channels", [4, 8])
@pytest.mark.parametrize("groups", [4, 6, 8])
@pytest.mark.parametrize("kernel", [1, 3, 9])
@pytest.mark.usefixtures("isa")
def test_small_groups(channels: int, groups: int, kernel: int, generator: torch.Generator) -> None:
    """Several in one panel where they fill it; an infinity stays in its own group."""
    pads = (kernel // 2,) * 4
    conv = layer(generator, channels * groups, channels * groups, (kernel, kernel), groups=groups, pads=pads)
    for size in ((3, 2), (7, 16)):
        x = random(generator, (2, channels * groups, *size))
        check(conv, x, "slice")
        x[1, channels + 1, 1, 1] = float("inf")
        y = check(conv, x, "nchw", 2)
        assert y[:, :channels].isfinite().all()
        assert y[:, 2 * channels :].isfinite().all()


def test_rank_3(generator: torch.Generator) -> None:
    conv = layer(generator, 20, 33, (1, 3), pads=(0, 1, 0, 1), stride=(1, 2))
    x = random(generator, (3, 20, 50))
    expected = run(conv.kernel(), [x[:, :, None]], (3, 33, 1, 25))
    for layout in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):
        y = torch.full((3, 25, 33), NAN).transpose(1, 2)
        conv.kernel().run([layout], [y], 2)
        assert torch.equal(y, expected[:, :, 0])


@pytest.mark.parametrize("name", ["point", "same", "groups"])
def test_bf16_weights(name: str, generator: torch.Generator) -> None:
    """They are the fp32 ones that they stand for."""
    conv, x = case(generator, name)
    narrow = conv.weight.bfloat16()
    rounded = Layer(narrow.float(), conv.bias, conv.groups, conv.stride, conv.pads, conv.dilation)
    sizes = conv.reference(x).shape
    bits = Layer(narrow, conv.bias, conv.groups, conv.stride, conv.pads, conv.dilation).kernel(bf16=True)
    assert torch.equal(run(bits, [x], sizes), run(rounded.kernel(), [x], sizes))


def test_arguments() -> None:
    weight = torch.zeros(4, 4, 3, 3)
    with pytest.raises(ValueError, match="geometry: needs 13 sizes"):
        module().Conv(weight.data_ptr(), 0, [4, 4, 1, 3, 3], False)
    conv = Layer(weight, None).kernel()
    with pytest.raises(ValueError, match="the map is smaller than the kernel"):
        conv.run([torch.zeros(1, 4, 2, 5)], [torch.zeros(1, 4, 1, 3)], 1)
    with pytest.raises(ValueError, match="softmax cannot follow"):
        module().ConvWith(conv, False, [(7, 0.0, 0.0)])
    assert conv.packed_bytes >= weight.numel() * 4


def test_the_convolution_outlives_its_name(generator: torch.Generator) -> None:
    conv, x = case(generator, "point")
    kernel = module().ConvWith(conv.kernel(), False, [])
    assert torch.equal(run(kernel, [x], conv.reference(x).shape), run(conv.kernel(), [x], conv.reference(x).shape))


# Values that Winograd's sums would spread, or not hold.


@pytest.mark.parametrize("name", ["point", "same", "many_taps", "small_maps", "groups", "stem"])
@pytest.mark.usefixtures("isa")
def test_nan_and_infinities_go_where_eager_sends_them(name: str, generator: torch.Generator) -> None:
    conv, x = case(generator, name)
    height, width = x.shape[2:]
    for i, special in enumerate([NAN, float("inf"), float("-inf"), -NAN, 3e38, 1e-42, -0.0]):
        x[i % 2, i % x.shape[1], 3 * i % height, 5 * i % width] = special
    check(conv, x)
    with_epilogue(conv, x, None, ["relu"], "slice", 2)


@pytest.mark.usefixtures("isa")
def test_values_at_the_end_of_the_range(generator: torch.Generator) -> None:
    conv = Layer(torch.full((16, 32, 3, 3), 1e-3), None, pads=(1, 1, 1, 1))
    check(conv, torch.full((1, 32, 6, 6), 3e38) * random(generator, (1, 32, 6, 6)).sign())
    check(Layer(torch.full((16, 64, 3, 3), 3e38), None), random(generator, (1, 64, 6, 6), 1e-5))
    check(Layer(random(generator, (16, 64, 3, 3), 1e-40), None), random(generator, (1, 64, 6, 6), 1e5))


def beside(x: torch.Tensor, row: int, column: int, value: float) -> torch.Tensor:
    """x with one pixel full of a value."""
    x = x.clone()
    x[:, :, row, column] = value
    return x


@pytest.mark.parametrize("value", [20.0, 100.0, 1e6, 1e20, 1e38, float("inf"), NAN])
@pytest.mark.parametrize("size", [64, 200])
@pytest.mark.usefixtures("isa")
def test_a_pixel_counts_for_its_own_outputs_alone(value: float, size: int, generator: torch.Generator) -> None:
    """However large, it leaves no error in outputs that it is no part of; beyond its tiles not a bit changes."""
    conv = layer(generator, size, 32, (3, 3), pads=(1, 1, 1, 1))
    x = random(generator, (1, size, 12, 11))
    plain = run(conv.kernel(), [x], (1, 32, 12, 11))
    for row, column in ((4, 5), (5, 6), (0, 0), (11, 10)):
        loud = beside(x, row, column, value)
        y = run(conv.kernel(), [loud], (1, 32, 12, 11), 2)
        rows, columns = torch.arange(12)[:, None], torch.arange(11)
        its_own = ((rows - row).abs() <= 1) & ((columns - column).abs() <= 1)
        eager, exact = conv.reference(loud), conv.reference(loud.double())
        sums = conv.reference(x.abs()).max().item()
        assert_close_to_reference(y[..., ~its_own], eager[..., ~its_own], exact[..., ~its_own], sums)
        far = ((rows - row).abs() > 3) | ((columns - column).abs() > 3)
        assert torch.equal(y[..., far], plain[..., far])


@pytest.mark.parametrize("value", [1e4, 1e12, 1e30])
@pytest.mark.usefixtures("isa")
def test_a_pixel_whose_weights_are_zero_leaves_no_error(value: float, generator: torch.Generator) -> None:
    conv = layer(generator, 64, 48, (3, 3))
    conv.weight[:, :, 0, :2] = 0
    x = random(generator, (2, 64, 9, 10))
    x[1, :, 0, 1] = value  # meets the first two taps of the first row alone
    check(conv, x)


@pytest.mark.usefixtures("isa")
def test_errors_beside_eager(generator: torch.Generator) -> None:
    """Deep sums, whose blocks bound their errors: no larger than one and a half of eager's, root mean square."""
    for channels, size in ((64, 14), (256, 8)):
        conv = layer(generator, channels, channels, (3, 3), pads=(1, 1, 1, 1))
        x = random(generator, (2, channels, size, size)).relu()
        exact, eager = conv.reference(x.double()), conv.reference(x)
        y = run(conv.kernel(), [x], eager.shape)
        ours, its = ((t - exact).square().mean().sqrt().item() for t in (y, eager))
        assert ours < 1.5 * its
