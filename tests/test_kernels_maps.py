"""Pools and resizing channels last, against torch and float64."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgraph.kernels import native
from tests.channels_last import covering, placed, run, same, same_everywhere
from tests.reference import assert_close_to_reference, random

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")

MAX, AVERAGE = 0, 1
CHANNELS = [1, 3, 15, 16, 17, 31, 33, 80]


@dataclass(frozen=True)
class Pool:
    """torch.nn.functional.max_pool2d or avg_pool2d."""

    kind: int
    kernel: tuple[int, int] = (2, 2)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None

    def make(self) -> Any:
        module: Any = native.kernels()
        return module.Pool(
            self.kind,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor or 0,
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == MAX:
            return F.max_pool2d(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        return F.avg_pool2d(
            x, self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor
        )


@dataclass(frozen=True)
class Adaptive:
    """torch.nn.functional.adaptive_max_pool2d or adaptive_avg_pool2d."""

    kind: int
    size: tuple[int, int]

    def make(self) -> Any:
        module: Any = native.kernels()
        return module.AdaptivePool(self.kind, self.size)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (F.adaptive_max_pool2d if self.kind == MAX else F.adaptive_avg_pool2d)(x, self.size)


NEAREST, LINEAR, NEAREST_EXACT = 0, 1, 2
MODES = {NEAREST: "nearest", LINEAR: "bilinear", NEAREST_EXACT: "nearest-exact"}


@dataclass(frozen=True)
class Resize:
    """torch.nn.functional.interpolate to a size, or by a factor."""

    kind: int
    align_corners: bool = False
    size: tuple[int, int] | None = None
    factor: tuple[float, float] | None = None

    def ratio(self, axis: int, before: int, after: int) -> float:
        """As ATen's area_pixel_compute_scale; for the nearest pixel nearest_idx takes two cases out."""
        if self.align_corners:
            return (before - 1) / (after - 1) if after > 1 else 0
        if self.factor is None or (self.kind == NEAREST and after in (before, 2 * before)):
            return before / after
        return 1 / self.factor[axis]

    def make_for(self, x: torch.Tensor) -> Any:
        module: Any = native.kernels()
        ratios = [self.ratio(i, x.shape[2 + i], self(x).shape[2 + i]) for i in (0, 1)]
        return module.Upsample(self.kind, self.align_corners, *ratios)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        corners = self.align_corners if self.kind == LINEAR else None
        return F.interpolate(x, self.size, self.factor, MODES[self.kind], corners)


def check(op: Any, x: torch.Tensor, threads: int = 1, beside: int = 0) -> torch.Tensor:
    """The kernel's result, compared: picked values have torch's bits, sums are as near to float64 as torch's."""
    kernel = op.make_for(x) if isinstance(op, Resize) else op.make()
    eager = op(x)
    y = run(kernel, [x], eager.shape, threads, beside)
    if isinstance(op, Resize) and op.kind != LINEAR:
        assert same(y, eager)
    elif not isinstance(op, Resize) and op.kind == MAX:
        assert same(y, op(x.contiguous(memory_format=torch.channels_last)))
        assert torch.equal(y.nan_to_num(nan=7.0), eager.nan_to_num(nan=7.0))
    else:
        sums = op(x.abs()).nan_to_num(nan=0.0, posinf=0.0)
        assert_close_to_reference(y, eager, op(x.double()), sums.max().item() if y.numel() else 0)
        if isinstance(op, Resize):  # whose weights in float64 are not 0 at the same places
            assert torch.equal(y.isnan(), eager.isnan())
            assert torch.equal(y.isinf(), eager.isinf())
    return y


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", [MAX, AVERAGE])
@pytest.mark.parametrize("kernel", [2, 3, 5, 4])
def test_channels(kind: int, kernel: int, channels: int, generator: torch.Generator) -> None:
    x = random(generator, (2, channels, 11, 13))
    for stride in (1, 2):
        check(Pool(kind, (kernel, kernel), (stride, stride), (kernel // 2,) * 2), x, beside=channels % 3)
    check(Adaptive(kind, (kernel, 3)), x, beside=channels % 3)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", MODES)
def test_channels_of_resized_maps(kind: int, channels: int, generator: torch.Generator) -> None:
    x = random(generator, (2, channels, 5, 7))
    for factor in ((2.0, 2.0), (1.7, 0.6)):
        check(Resize(kind, factor=factor), x, beside=channels % 3)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", [MAX, AVERAGE])
@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_width(kind: int, kernel: int, stride: int, generator: torch.Generator) -> None:
    for width in range(1, 24):
        x = random(generator, (1, 18, kernel + width % 3, width + kernel // 2))
        check(Pool(kind, (kernel, kernel), (stride, stride), (kernel // 2,) * 2), x)


POOLS: dict[str, list[Any]] = {
    "kernel": [(1, 1), (2, 2), (3, 3), (2, 3), (5, 4), (7, 7)],
    "stride": [(1, 1), (2, 2), (1, 2), (3, 1), (5, 5)],
    "padding": [(0, 0), "half", "width"],
    "dilation": [(1, 1), (2, 1), (1, 2), (3, 3)],
    "ceil_mode": [False, True],
    "count_include_pad": [True, False],
    "divisor": [None, 3, -5],
    "channels": [3, 16, 37],
    "size": [(25, 20), (19, 23)],
}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", [MAX, AVERAGE])
@pytest.mark.parametrize("case", covering(POOLS), ids=lambda case: "-".join(map(str, case.values())))
def test_options_in_pairs(kind: int, case: dict[str, Any], generator: torch.Generator) -> None:
    channels, size, padding = case["channels"], case["size"], case["padding"]
    height, width = (k // 2 for k in case["kernel"])
    padding = padding if isinstance(padding, tuple) else (height if padding == "half" else 0, width)
    options = {k: v for k, v in case.items() if k not in ("channels", "size")} | {"padding": padding}
    if kind == AVERAGE:
        options["dilation"] = (1, 1)
    check(Pool(kind, **options), random(generator, (2, channels, *size)), threads=2, beside=channels % 2)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_any_pool(data: st.DataObject, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pair = lambda least, most: data.draw(st.tuples(*[st.integers(least, most)] * 2))  # noqa: E731
    kind = data.draw(st.sampled_from([MAX, AVERAGE]))
    kernel, stride = pair(1, 7), pair(1, 4)
    dilation = pair(1, 3) if kind == MAX else (1, 1)
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    divisor = data.draw(st.sampled_from([None, 4]))
    pool = Pool(kind, kernel, stride, padding, dilation, data.draw(st.booleans()), data.draw(st.booleans()), divisor)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [least[0] + data.draw(st.integers(0, 8)), least[1] + data.draw(st.integers(0, 20))]
    x = random(generator, (data.draw(st.integers(0, 3)), data.draw(st.integers(1, 70)), *size))
    x[x > data.draw(st.sampled_from([2.0, 9.0]))] = data.draw(st.sampled_from([float("nan"), float("inf")]))
    check(pool, x, data.draw(st.integers(1, 3)), data.draw(st.integers(0, 20)))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_any_adaptive_pool(data: st.DataObject, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pair = lambda most: data.draw(st.tuples(*[st.integers(1, most)] * 2))  # noqa: E731
    x = random(generator, (data.draw(st.integers(0, 3)), data.draw(st.integers(1, 150)), *pair(40)))
    check(Adaptive(data.draw(st.sampled_from([MAX, AVERAGE])), pair(12)), x, 2, data.draw(st.integers(0, 20)))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_any_resize(data: st.DataObject, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pair = lambda most: data.draw(st.tuples(*[st.integers(1, most)] * 2))  # noqa: E731
    kind, size = data.draw(st.sampled_from(sorted(MODES))), pair(30)
    corners = kind == LINEAR and data.draw(st.booleans())
    if data.draw(st.booleans()):
        op = Resize(kind, corners, pair(60))
    else:
        factors = st.sampled_from([1.0, 1.5, 2.0, 2.3, 3.0, 4.0, 2 / 3])
        op = Resize(kind, corners, None, data.draw(st.tuples(factors, factors)))
    if op.factor is not None and min(int(n * f) for n, f in zip(size, op.factor, strict=True)) < 1:
        return
    x = random(generator, (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 70)), *size))
    check(op, x, 2, data.draw(st.integers(0, 20)))


EVERYWHERE = [
    (Pool(MAX, (3, 3), (2, 2), (1, 1)), (3, 64, 37, 40)),
    (Pool(MAX, (4, 4), (1, 1), (1, 2)), (3, 40, 21, 20)),
    (Pool(AVERAGE, (3, 3), (1, 1), (1, 1)), (3, 80, 20, 19)),
    (Pool(AVERAGE, (7, 7), (7, 7)), (1, 2000, 7, 7)),
    (Adaptive(AVERAGE, (1, 1)), (1, 1280, 7, 7)),
    (Adaptive(AVERAGE, (1, 1)), (3, 96, 61, 40)),
    (Adaptive(AVERAGE, (6, 5)), (2, 100, 31, 31)),
    (Adaptive(MAX, (1, 1)), (1, 1999, 9, 7)),
    (Resize(NEAREST, factor=(2.0, 2.0)), (2, 100, 20, 20)),
    (Resize(LINEAR, factor=(2.0, 2.0)), (2, 100, 20, 20)),
    (Resize(LINEAR, True, (31, 17)), (2, 100, 20, 20)),
]


@pytest.mark.parametrize(("op", "size"), EVERYWHERE, ids=lambda value: str(value).replace(" ", ""))
def test_bits_do_not_depend_on_batch_threads_or_isa(op: Any, size: tuple[int, ...], generator: torch.Generator) -> None:
    x = random(generator, size)
    make = (lambda: op.make_for(x)) if isinstance(op, Resize) else op.make
    same_everywhere(make, [x], op(x).shape)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("size", [(7, 7), (56, 56), (224, 224), (1, 100_000), (3, 5)], ids=str)
def test_global_averages_are_no_less_accurate_than_eagers(size: tuple[int, int], generator: torch.Generator) -> None:
    """Of values that are far from 0, where sums one after the other lose digits; no tolerance beside eager's error."""
    x = random(generator, (1, 48, *size)) + 100
    exact = x.double().mean((2, 3), keepdim=True)
    y = run(Adaptive(AVERAGE, (1, 1)).make(), [x], (1, 48, 1, 1))
    spacing = 2.0**-17  # of floats near 100
    assert (y - exact).abs().max() <= (F.adaptive_avg_pool2d(x, 1) - exact).abs().max() + spacing / 2


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("special", [float("nan"), -float("nan"), float("inf"), -float("inf"), -0.0, 1e-40, 3e38])
@pytest.mark.parametrize("fill", [None, 0.0, -float("inf"), float("inf")])
def test_special_values(special: float, fill: float | None, generator: torch.Generator) -> None:
    x = random(generator, (2, 21, 8, 22)) if fill is None else torch.full((2, 21, 8, 22), fill)
    for place in ((0, 0, 0, 0), (0, 7, 7, 21), (1, 20, 3, 9), (1, 16, 2, 13), (1, 3, 4, 4)):
        x[place] = special
    for kind in (MAX, AVERAGE):
        for kernel, stride in ((2, 2), (3, 1), (3, 2), (5, 1), (4, 3)):
            check(Pool(kind, (kernel, kernel), (stride, stride), (kernel // 2,) * 2), x)
        for size in ((1, 1), (3, 4)):
            check(Adaptive(kind, size), x)
    for kind in MODES:
        check(Resize(kind, factor=(2.0, 3.0)), x)
        check(Resize(kind, size=(8, 31)), x)


@pytest.mark.usefixtures("isa")
def test_a_window_with_nothing_of_the_map(generator: torch.Generator) -> None:
    """Taps either side of the map, with dilation."""
    y = check(Pool(MAX, (1, 2), (1, 1), (0, 1), (1, 5)), random(generator, (1, 20, 3, 4)))
    assert (y == -float("inf")).any()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", [MAX, AVERAGE])
def test_rows(kind: int, generator: torch.Generator) -> None:
    """[N, C, W] is a map one row high."""
    module: Any = native.kernels()
    x = random(generator, (2, 33, 50))
    wide, adaptive = Pool(kind, (1, 3), (1, 2), (0, 1)), Adaptive(kind, (1, 7))
    for op in (wide, adaptive):
        expected = check(op, x[:, :, None])[:, :, 0]
        assert same(run(op.make(), [x], expected.shape, 2, 3), expected)
    nearest = run(module.Upsample(NEAREST, False, 1.0, 1 / 3), [x], (2, 33, 150))
    assert same(nearest, F.interpolate(x, scale_factor=3.0))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("corners", [False, True])
def test_linear_rows(corners: bool, generator: torch.Generator) -> None:
    """One row is not taken with itself: an infinity stays one where its weight is not 0."""
    module: Any = native.kernels()
    x = random(generator, (2, 33, 50))
    x[0, 0, 10], x[1, 32, 49] = float("inf"), float("nan")
    op = lambda x: F.interpolate(x, 120, mode="linear", align_corners=corners)  # noqa: E731
    y = run(module.Upsample(LINEAR, corners, 1.0, 49 / 119 if corners else 50 / 120), [x], (2, 33, 120), 2, 3)
    assert_close_to_reference(y, op(x), op(x.double()))
    assert y[0, 0].isinf().any()


@pytest.mark.parametrize("size", [(2, 20, 6, 1), (2, 20, 1, 6), (3, 20, 1, 1), (1, 20, 1, 1)], ids=str)
def test_the_stride_of_a_size_of_one_means_nothing(size: tuple[int, ...], generator: torch.Generator) -> None:
    x, y = placed(random(generator, size), 3), placed(torch.zeros(size), 7)
    for view in (x, y):
        strides = [99 if n == 1 else stride for n, stride in zip(size, view.stride(), strict=True)]
        view.as_strided_(size, strides)
    Pool(MAX, (3, 3), (1, 1), (1, 1)).make().run([x], [y], 1)
    assert same(y, F.max_pool2d(x.contiguous(), 3, 1, 1))


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_batches(batch: int, generator: torch.Generator) -> None:
    x = random(generator, (batch, 24, 6, 6))
    for kind in (MAX, AVERAGE):
        check(Pool(kind), x, 2)
        check(Adaptive(kind, (1, 1)), x, 2)
    module: Any = native.kernels()
    y = run(module.Upsample(NEAREST, False, 0.5, 0.5), [x], (batch, 24, 12, 12), 2)
    assert same(y, x.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Pool", (2, (2, 2), (2, 2), (0, 0), (1, 1), False, True, 0), "pool: kind has to be 0 (max) or 1 (average)"),
        ("Pool", (0, (2, 0), (2, 2), (0, 0), (1, 1), False, True, 0), "pool: kernel, stride and dilation have to be"),
        ("Pool", (0, (2, 2), (2, 2), (-1, 0), (1, 1), False, True, 0), "pool: padding must not be negative"),
        ("Pool", (1, (2, 2), (2, 2), (0, 0), (1, 2), False, True, 0), "pool: averages have no dilation"),
        ("AdaptivePool", (-1, (1, 1)), "pool: kind has to be 0 (max) or 1 (average)"),
        ("Upsample", (3, False, 0.5, 0.5), "upsample: mode has to be 0 (nearest), 1 (linear) or 2 (nearest-exact)"),
    ],
)
def test_arguments_that_do_not_fit(name: str, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(native.kernels(), name)(*arguments)


def test_results_of_another_size(generator: torch.Generator) -> None:
    module: Any = native.kernels()
    x = random(generator, (2, 4, 5, 5))
    for kernel in (Pool(MAX).make(), Adaptive(MAX, (2, 3)).make()):
        with pytest.raises(ValueError, match="pool: needs a result of the sizes that follow from the input's"):
            run(kernel, [x], (2, 4, 3, 3))
    with pytest.raises(ValueError, match="upsample: needs a result of the input's batch and channels"):
        run(module.Upsample(NEAREST, False, 0.5, 0.5), [x], (2, 3, 10, 10))
    with pytest.raises(ValueError, match="upsample: needs an input with pixels"):
        run(module.Upsample(NEAREST, False, 0.5, 0.5), [x[:, :, :0]], (2, 4, 10, 10))
    with pytest.raises(ValueError, match="adaptive pool: needs an input with pixels"):
        run(Adaptive(MAX, (2, 3)).make(), [x[:, :, :0]], (2, 4, 2, 3))
