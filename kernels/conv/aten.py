"""ATen's convolutions with constant weights, and what a plan computes with them: a residual and activations."""

from collections.abc import Sequence
from typing import Any

import torch

from fastgraph.kernels import native
from fastgraph.kernels.conv_pool.op import conv_size
from fastgraph.kernels.lowering import BoundAten, Lowering, Operand, Pending, binds, require, size_of, takes_fp32
from fastgraph.kernels.weights import Packed, address, contiguous

aten = torch.ops.aten

TARGETS = (aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding)
FEW_CHANNELS = 4  # of an image that the kernel reads as it is, channels first


def geometry(
    weight: torch.Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[int, ...]:
    """The kernel's sizes for ATen's arguments behind weight and bias; see `ConvGeometry` in kernels/conv/cpu.h."""
    axes = weight.dim() - 2
    kernel = list(weight.shape[2:])
    strides, dilations = numbers(stride, axes), numbers(dilation, axes)
    if isinstance(padding, str):
        reach = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, kernel, strict=True)]
        before = [r // 2 for r in reach]
        after = [r - b for r, b in zip(reach, before, strict=True)]
    else:
        before = after = numbers(padding, axes)
    if axes == 1:  # a map with one row
        kernel, strides, dilations = [1, *kernel], [1, *strides], [1, *dilations]
        before, after = [0, *before], [0, *after]
    channels = weight.shape[1] * groups
    return (channels, weight.shape[0], groups, *kernel, *strides, *before, *after, *dilations)


def numbers(value: Any, axes: int) -> list[int]:
    """A number for each axis."""
    given = list(value) if isinstance(value, list | tuple) else [value]
    return given * axes if len(given) == 1 else given


def _pack(tensors: Sequence[torch.Tensor | None], sizes: tuple[int, ...]) -> Any:
    module = native.kernels()
    assert module is not None
    weight, bias = contiguous(tensors)
    if is_depthwise(sizes):
        return module.Depthwise(address(weight), address(bias), list(sizes))
    return module.Conv(address(weight), address(bias), list(sizes), False)


def is_depthwise(sizes: tuple[int, ...]) -> bool:
    """Whether every channel is convolved by itself."""
    channels, _, groups, *_ = sizes
    return groups == channels > 1


_packed = Packed(_pack)


@binds(*TARGETS)
class BoundConv(BoundAten):
    """A convolution with weights that stay what they are."""

    name = "conv"
    makes_a_plan = True  # it lies otherwise than ATen's
    reads_images = True  # channels first, where there are few

    def __init__(
        self, target: Any, weight: torch.Tensor, bias: torch.Tensor | None = None, *others: Any, **named: Any
    ) -> None:
        super().__init__(target, weight, bias, *others, **named)
        self._sizes = sizes = geometry(weight, *others, **named)
        self._rank = weight.dim()
        if weight.numel() > 0 and takes_fp32(weight, bias):
            self.kernel = _packed.get([weight, bias], sizes)
        self._is_depthwise = is_depthwise(sizes)
        self.reads_images = not self._is_depthwise

    def lower(self, low: Lowering, x: Operand) -> Operand:
        """The convolution, open for an epilogue."""
        return PendingConv(self, x, self.output_size(size_of(x)))

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Of the result."""
        channels, outputs, _, *windows = self._sizes
        require(len(size) == self._rank and size[1] == channels, "an image of another rank or other channels")
        height, width = [1, *size[2:]][-2:]
        kernel, stride, before, after, dilation = (windows[i : i + 2] for i in range(0, 10, 2))
        result = [
            conv_size(n + b + a, k, s, 0, d)
            for n, k, s, b, a, d in zip((height, width), kernel, stride, before, after, dilation, strict=True)
        ]
        require(min(result) > 0, "an image smaller than the kernel")
        return (size[0], outputs, *result[4 - len(size) :])

    def with_epilogue(self, low: Lowering, residual: bool, activations: Sequence[tuple[int, float, float]]) -> Any:
        """The kernel with an epilogue, on the same packed weights."""
        if not residual and not activations:
            return self.kernel
        return self._made(low)(self.kernel, residual, list(activations))

    def _made(self, low: Lowering) -> Any:
        return low.kernels.DepthwiseWith if self._is_depthwise else low.kernels.ConvWith


class PendingConv(Pending):
    """A convolution to which what follows it may still be added: first a residual, then activations."""

    MAX_ACTIVATIONS = 4

    def __init__(self, conv: BoundConv, x: Operand, size: Sequence[int]) -> None:
        super().__init__(size)
        self._conv, self._x = conv, x
        self._residual: torch.Tensor | None = None
        self._activations: list[tuple[int, float, float]] = []

    def takes_residual(self, size: Sequence[int]) -> bool:
        """Whether a tensor of this size can still be added in its epilogue."""
        return self._residual is None and not self._activations and self.tensor.shape == torch.Size(size)

    def add_residual(self, residual: torch.Tensor) -> "PendingConv":
        """Adds it."""
        self._residual = residual
        return self

    def takes_activation(self) -> bool:
        """Whether one more activation fits."""
        return len(self._activations) < self.MAX_ACTIVATIONS

    def add_activation(self, kind: int, a: float, b: float) -> "PendingConv":
        """Adds one."""
        self._activations.append((kind, a, b))
        return self

    def emit(self, low: Lowering) -> torch.Tensor:
        """Adds the step."""
        place = low.result(self.tensor.shape, channels_last=True)
        x = low.ready(self._x)
        reads_as_it_is = x.is_contiguous() and x.shape[1] <= FEW_CHANNELS and self._conv.reads_images
        x = low.contiguous(x) if reads_as_it_is else low.channels_last(x)
        inputs = [x] if self._residual is None else [x, low.channels_last(self._residual)]
        kernel = self._conv.with_epilogue(low, self._residual is not None, self._activations)
        return low.step(kernel, inputs, place)
