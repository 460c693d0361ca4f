"""Transposed convolution whose kernel is as large as its stride, channels last, against float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgraph.kernels import native
from tests.channels_last import run, same, same_everywhere
from tests.reference import assert_close_to_reference, random

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")

RELU, HARDSWISH, CLAMP = (1, 0.0, 0.0), (12, 0.0, 0.0), (9, -1.0, 2.0)
FUNCTIONS = {RELU: F.relu, HARDSWISH: F.hardswish, CLAMP: lambda x: x.clamp(-1, 2)}


def make(
    weight: torch.Tensor, bias: torch.Tensor | None, residual: bool = False, activations: tuple[Any, ...] = ()
) -> Any:
    module: Any = native.kernels()
    channels, out_channels, *size = weight.shape
    geometry = [channels, out_channels, 1, *size, *size, 0, 0, 0, 0, 1, 1]
    plain = module.ConvTranspose(weight.data_ptr(), bias.data_ptr() if bias is not None else 0, geometry)
    return module.ConvTransposeWith(plain, residual, list(activations)) if residual or activations else plain


def size_of(x: torch.Tensor, weight: torch.Tensor) -> list[int]:
    return [x.shape[0], weight.shape[1], *(n * k for n, k in zip(x.shape[2:], weight.shape[2:], strict=True))]


def check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None = None,
    activations: tuple[Any, ...] = (),
    threads: int = 1,
    beside: int = 0,
) -> torch.Tensor:
    def eager(x: torch.Tensor, weight: torch.Tensor, bias: Any, residual: Any, activations: Any) -> torch.Tensor:
        y = F.conv_transpose2d(x, weight, bias, weight.shape[2:])
        y = y if residual is None else y + residual
        for activation in activations:
            y = FUNCTIONS[activation](y)
        return y

    values = (x, weight, bias, residual)
    kernel = make(weight, bias, residual is not None, activations)
    y = run(kernel, [x] if residual is None else [x, residual], size_of(x, weight), threads, beside)
    sums = eager(*(None if t is None else t.abs() for t in values), ())
    exact = eager(*(None if t is None else t.double() for t in values), activations)
    largest = sums.nan_to_num(0, 0).max().item() if sums.numel() else 0.0
    assert_close_to_reference(y, eager(*values, activations), exact, largest)
    return y


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("channels", [1, 3, 16, 17, 300])
@pytest.mark.parametrize("out_channels", [1, 3, 8, 15, 16, 17, 24, 31, 33, 64])
def test_channels(channels: int, out_channels: int, generator: torch.Generator) -> None:
    weight, bias = random(generator, (channels, out_channels, 2, 2)), random(generator, (out_channels,))
    x = random(generator, (2, channels, 5, 7))
    residual = random(generator, size_of(x, weight))
    check(x, weight, bias, beside=channels % 3)
    check(x, weight, None, residual, (RELU, HARDSWISH), beside=out_channels % 3)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_anything(data: st.DataObject, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    whole = lambda least, most: data.draw(st.integers(least, most))  # noqa: E731
    weight = random(generator, (whole(1, 80), whole(1, 80), whole(1, 4), whole(1, 4)))
    x = random(generator, (whole(0, 3), weight.shape[0], whole(1, 20), whole(1, 20)))
    bias = random(generator, (weight.shape[1],)) if data.draw(st.booleans()) else None
    residual = random(generator, size_of(x, weight)) if data.draw(st.booleans()) else None
    activations = tuple(data.draw(st.lists(st.sampled_from(list(FUNCTIONS)), max_size=2)))
    check(x, weight, bias, residual, activations, whole(1, 3), whole(0, 20))


@pytest.mark.parametrize("size", [(3, 64, 19, 21), (1, 200, 4, 4), (2, 33, 1, 1)], ids=str)
def test_bits_do_not_depend_on_batch_threads_or_isa(size: tuple[int, ...], generator: torch.Generator) -> None:
    x, weight, bias = random(generator, size), random(generator, (size[1], 200, 2, 2)), random(generator, (200,))
    same_everywhere(lambda: make(weight, bias, False, (CLAMP,)), [x], size_of(x, weight))


def test_rows(generator: torch.Generator) -> None:
    """[N, C, W] is a map one row high."""
    x, weight, bias = random(generator, (2, 20, 1, 30)), random(generator, (20, 9, 1, 3)), random(generator, (9,))
    expected = check(x, weight, bias)
    assert same(run(make(weight, bias), [x[:, :, 0]], (2, 9, 90), 2, 1), expected[:, :, 0])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -0.0, 3e38])
def test_special_pixels(special: float, generator: torch.Generator) -> None:
    x, weight = random(generator, (2, 20, 4, 6)), random(generator, (20, 18, 2, 2))
    x[0, 3, 1, 2] = special
    y = check(x, weight, None)
    assert y[0, :, :2].isfinite().all()


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ([4, 4, 1, 2, 2], "geometry: needs 13 sizes"),
        ([4, 4, 2, 2, 2, 2, 2, 0, 0, 0, 0, 1, 1], "needs a kernel as large as the stride, without padding, dilation"),
        ([4, 4, 1, 3, 3, 2, 2, 0, 0, 0, 0, 1, 1], "needs a kernel as large as the stride, without padding, dilation"),
        ([4, 4, 1, 2, 2, 2, 2, 1, 0, 0, 0, 1, 1], "needs a kernel as large as the stride, without padding, dilation"),
        ([4, 4, 1, 2, 2, 2, 2, 0, 0, 1, 0, 1, 1], "needs a kernel as large as the stride, without padding, dilation"),
        ([4, 4, 1, 2, 2, 2, 2, 0, 0, 0, 0, 2, 1], "needs a kernel as large as the stride, without padding, dilation"),
        ([0, 4, 1, 2, 2, 2, 2, 0, 0, 0, 0, 1, 1], "conv_transpose: sizes have to be positive"),
    ],
)
def test_sizes_that_do_not_fit(geometry: list[int], message: str) -> None:
    module: Any = native.kernels()
    weight = torch.zeros(4, 4, 3, 3)
    with pytest.raises(ValueError, match=message):
        module.ConvTranspose(weight.data_ptr(), 0, geometry)


def test_a_result_of_another_size_and_softmax(generator: torch.Generator) -> None:
    module: Any = native.kernels()
    plain = make(random(generator, (4, 5, 2, 2)), None)
    with pytest.raises(ValueError, match="conv_transpose: needs a result of the sizes that follow from the input's"):
        run(plain, [random(generator, (1, 4, 3, 3))], (1, 5, 6, 7))
    with pytest.raises(ValueError, match="conv_transpose: needs elementwise activations"):
        module.ConvTransposeWith(plain, False, [(7, 0.0, 0.0)])
