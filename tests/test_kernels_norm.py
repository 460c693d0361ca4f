"""The native kernels LayerNorm, RmsNorm, GroupNorm, Reduce, Softmax against torch: guards, special values, bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgraph.kernels import native
from tests.conftest import ISAS
from tests.reference import assert_close_to_reference, random
from tests.test_kernels_pointwise import guarded, result_like, same, untouched

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")

kernels: Any = native.kernels()
SIZES = [1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 100, 768, 1023, 1024, 1025, 5000]
REDUCTIONS: list[Callable[..., torch.Tensor]] = [torch.sum, torch.mean, torch.amax, torch.amin]  # in the kernel's order


def address(tensor: torch.Tensor | None) -> int:
    return tensor.data_ptr() if tensor is not None else 0


def run(kernel: Any, x: torch.Tensor, shape: Any, stride: Any, threads: int = 1) -> torch.Tensor:
    """The kernel's result for x, having looked at the guards around both."""
    y, memory = result_like(shape, stride)
    kernel.run([guarded(x)], [y], threads)
    result = y.clone(memory_format=torch.preserve_format)
    assert untouched(y, memory)
    return result


def contiguous(shape: Any) -> tuple[int, ...]:
    return torch.empty(shape).stride()


def normalize(name: str, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    """What the kernel of that name is in torch."""
    size = (x.shape[-1],)
    return F.layer_norm(x, size, weight, bias, 1e-5) if name == "layer" else F.rms_norm(x, size, weight, 1e-5)


def norm_kernel(name: str, size: int, weight: torch.Tensor | None, bias: torch.Tensor | None) -> Any:
    if name == "layer":
        return kernels.LayerNorm(size, address(weight), address(bias), 1e-5)
    return kernels.RmsNorm(size, address(weight), 1e-5)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", ["layer", "rms"])
@pytest.mark.parametrize("size", SIZES)
def test_rows(name: str, size: int, generator: torch.Generator) -> None:
    for offset, parameters in ((0.0, True), (100.0, True), (-3.0, False)):
        weight = guarded(random(generator, (size,))) if parameters else None
        bias = guarded(random(generator, (size,))) if parameters and name == "layer" else None
        x = random(generator, (2, 3, size), 2.0) + offset
        y = run(norm_kernel(name, size, weight, bias), x, x.shape, x.stride())
        doubles = [t.double() if t is not None else None for t in (weight, bias)]
        eager, exact = normalize(name, x, weight, bias), normalize(name, x.double(), *doubles)
        assert_close_to_reference(y, eager, exact)
        if size > 2:
            assert (y - exact).abs().max() <= 4 * 2**-23 * exact.abs().max()


@pytest.mark.parametrize("name", ["layer", "rms"])
def test_rows_of_a_wider_matrix(name: str, generator: torch.Generator) -> None:
    wide = random(generator, (9, 70))
    x = wide[:, 3:-7]
    y = run(norm_kernel(name, 60, None, None), x, (9, 60), (60, 1))
    assert_close_to_reference(y, normalize(name, x, None, None), normalize(name, x.double(), None, None))


@pytest.mark.parametrize("name", ["layer", "rms"])
def test_special_rows(name: str) -> None:
    """A row with a NaN or an infinity is eager's; its neighbours are as without it. Equal values have no variance."""
    x = torch.linspace(-2, 3, 5 * 40).view(5, 40).clone()
    x[1, 3], x[2, 39], x[3] = torch.nan, torch.inf, 7.0
    y, eager = run(norm_kernel(name, 40, None, None), x, (5, 40), (40, 1)), normalize(name, x, None, None)
    assert_close_to_reference(y, eager, normalize(name, x.double(), None, None))
    if name == "layer":
        assert (y[3] == 0).all()


def test_no_rows_and_no_values() -> None:
    for shape in ((0, 20), (3, 0), (0, 0)):
        run(norm_kernel("layer", shape[1], None, None), torch.empty(shape), shape, contiguous(shape))
        run(kernels.Softmax(False), torch.empty(shape), shape, contiguous(shape))
    group = kernels.GroupNorm(2, 4, 0, 0, 1e-5)
    run(group, torch.empty(0, 4, 2, 2), (0, 4, 2, 2), (16, 1, 8, 4))
    run(group, torch.empty(1, 4, 0, 2), (1, 4, 0, 2), (0, 1, 8, 4))


def channels_last(x: torch.Tensor, spare: int) -> torch.Tensor:
    """The same values, channels last, in pixels with `spare` values more."""
    n, c, *rest = x.shape
    wide = torch.empty(n, *rest, c + spare).movedim(-1, 1)
    return wide[:, :c].copy_(x)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 3, 8, 32]),
    each=st.sampled_from([1, 2, 5, 16, 17]),
    pixels=st.sampled_from([(1,), (7,), (1, 1), (3, 5), (9, 14), (33, 31)]),
    images=st.integers(1, 3),
    spare=st.sampled_from([0, 0, 3]),
    offset=st.sampled_from([0.0, 30.0]),
    parameters=st.booleans(),
    seed=st.integers(0, 2**30),
)
def test_group_norm(
    groups: int,
    each: int,
    pixels: tuple[int, ...],
    images: int,
    spare: int,
    offset: float,
    parameters: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    channels = groups * each
    x = random(generator, (images, channels, *pixels)) + offset
    weight, bias = (random(generator, (channels,)) if parameters else None for _ in range(2))
    kernel = kernels.GroupNorm(groups, channels, address(weight), address(bias), 1e-5)
    source, target = channels_last(x, spare), channels_last(x, 2 * spare)
    doubles = [t.double() if t is not None else None for t in (weight, bias)]
    eager, exact = torch.group_norm(x, groups, weight, bias), torch.group_norm(x.double(), groups, *doubles)
    first = run(kernel, source, target.shape, target.stride())
    assert_close_to_reference(first, eager, exact)
    assert torch.equal(run(kernel, source, target.shape, target.stride(), 3), first)
    alone = run(kernel, source[-1:], target[-1:].shape, target[-1:].stride())
    assert torch.equal(alone, first[-1:])


def test_group_norm_of_parts_that_differ(generator: torch.Generator) -> None:
    """Pixels unlike the others, be they those that are looked at first: exact still."""
    x = random(generator, (2, 8, 128, 128))
    x.flatten(2)[0, :, :: 128 * 128 // 16] += 1000.3
    x[1, :, 100, 39] -= 1e5
    kernel = kernels.GroupNorm(4, 8, 0, 0, 1e-5)
    source = channels_last(x, 0)
    y, exact = run(kernel, source, x.shape, source.stride()), torch.group_norm(x.double(), 4)
    assert ((y - exact).abs().amax((1, 2, 3)) <= 4 * 2**-23 * exact.abs().amax((1, 2, 3))).all()
    assert torch.equal(run(kernel, source[1:], source[1:].shape, source.stride()), y[1:])


def test_group_norm_of_special_values(generator: torch.Generator) -> None:
    x = random(generator, (2, 6, 5, 5))
    x[0, 0, 1, 1], x[1, 5, 0, 0] = torch.nan, torch.inf
    y = run(kernels.GroupNorm(3, 6, 0, 0, 1e-5), channels_last(x, 0), x.shape, channels_last(x, 0).stride())
    eager = torch.group_norm(x, 3)
    assert_close_to_reference(y, eager, torch.group_norm(x.double(), 3))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("kind", range(4), ids=["sum", "mean", "amax", "amin"])
def test_reduce(kind: int, generator: torch.Generator) -> None:
    function = REDUCTIONS[kind]
    for size in SIZES:
        x = random(generator, (3, size)) + 1
        y = run(kernels.Reduce(kind, 1), x, (3,), (1,))
        assert_close_to_reference(y, function(x, dim=-1), function(x.double(), dim=-1))
    x = random(generator, (2, 3, 5, 7))
    for axes in (1, 2, 3, 4):
        shape = x.shape[: 4 - axes]
        y = run(kernels.Reduce(kind, axes), x, shape, contiguous(shape), 3)
        dims = tuple(range(-axes, 0))
        assert_close_to_reference(y, function(x, dim=dims), function(x.double(), dim=dims))


@pytest.mark.parametrize("size", [1, 5, 16, 20, 40])
def test_reduce_special_values(size: int) -> None:
    values = torch.tensor([0.5, torch.nan, torch.inf, -torch.inf, -3e38, 3e38])
    for special in values:
        for place in {0, size // 2, size - 1}:
            x = torch.full((2, size), -1.0)
            x[1, place] = special
            for kind, function in enumerate(REDUCTIONS):
                assert same(run(kernels.Reduce(kind, 1), x, (2,), (1,)), function(x, dim=-1)) or special.isfinite()
                if kind > 1:
                    assert same(run(kernels.Reduce(kind, 1), x, (2,), (1,)), function(x, dim=-1))


def test_reduce_nothing() -> None:
    assert run(kernels.Reduce(0, 1), torch.empty(2, 0), (2,), (1,)).tolist() == [0, 0]
    assert run(kernels.Reduce(1, 1), torch.empty(2, 0), (2,), (1,)).isnan().all()
    assert run(kernels.Reduce(0, 1), torch.empty(0, 5), (0,), (1,)).numel() == 0


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("log", [False, True])
def test_softmax(log: bool, generator: torch.Generator) -> None:
    function = torch.log_softmax if log else torch.softmax
    for size in SIZES:
        for scale in (1.0, 40.0):
            x = random(generator, (2, 3, size), scale)
            y = run(kernels.Softmax(log), x, x.shape, x.stride())
            assert_close_to_reference(y, function(x, -1), function(x.double(), -1))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("size", [1, 5, 16, 20, 40])
def test_softmax_special_values(log: bool, size: int) -> None:
    """Masks of -infinity give zeros, rows with nothing else NaN, as in eager."""
    function = torch.log_softmax if log else torch.softmax
    x = torch.linspace(-1, 1, 6 * size).view(6, size).clone()
    x[0, : size // 2], x[1], x[2, -1], x[3, 0], x[4, size // 2] = -torch.inf, -torch.inf, torch.inf, torch.nan, 3e38
    y, eager = run(kernels.Softmax(log), x, x.shape, x.stride()), function(x, -1)
    assert same(y.where(~eager.isfinite(), 0.0), eager.where(~eager.isfinite(), 0.0))
    assert torch.equal(y == 0, eager == 0) or log
    assert torch.allclose(y, eager, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_same_bits_whatever_the_batch_the_threads_and_the_instruction_set(generator: torch.Generator) -> None:
    x, size = random(generator, (300, 333), 3), 333
    weight, bias = random(generator, (size,)), random(generator, (size,))
    image = channels_last(x.view(1, 300, 9, 37), 0)

    def results(part: torch.Tensor, threads: int) -> list[torch.Tensor]:
        made = [norm_kernel("layer", size, weight, bias), norm_kernel("rms", size, weight, None)]
        made += [kernels.Softmax(log) for log in (False, True)]
        rows = [run(kernel, part, part.shape, part.stride(), threads) for kernel in made]
        return rows + [run(kernels.Reduce(kind, 1), part, part.shape[:1], (1,), threads) for kind in range(4)]

    def group(threads: int) -> torch.Tensor:
        return run(kernels.GroupNorm(10, 300, 0, 0, 1e-5), image, image.shape, image.stride(), threads)

    expected, expected_group = results(x, 1), group(1)
    before = kernels.isa()
    for isa in ISAS:
        kernels.select_isa(isa)
        for y, e in zip(results(x, 3), expected, strict=True):
            assert torch.equal(y, e), isa
        for y, e in zip(results(x[7:8], 1), expected, strict=True):
            assert torch.equal(y, e[7:8]), isa
        assert torch.equal(group(3), expected_group), isa
    kernels.select_isa(before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kernels.GroupNorm(3, 8, 0, 0, 1e-5), "GroupNorm: groups: needs a divisor of 8 channels, got 3"),
        (lambda: kernels.GroupNorm(0, 8, 0, 0, 1e-5), "GroupNorm: groups: needs a divisor of 8 channels, got 0"),
        (lambda: kernels.Reduce(4, 1), "Reduce: kind: needs 0 to 3, got 4"),
        (lambda: kernels.Reduce(-1, 1), "Reduce: kind: needs 0 to 3, got -1"),
        (lambda: kernels.Reduce(0, 0), "Reduce: axes: needs at least 1, got 0"),
    ],
)
def test_refusals(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
