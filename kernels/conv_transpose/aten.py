"""ATen's transposed convolution with constant weights, where the kernel is as large as its stride."""

from collections.abc import Sequence
from typing import Any

import torch

from fastgraph.kernels import native
from fastgraph.kernels.conv.aten import BoundConv, numbers
from fastgraph.kernels.lowering import BoundAten, Lowering, binds, require, takes_fp32
from fastgraph.kernels.weights import Packed, address, contiguous

aten = torch.ops.aten


def _pack(tensors: Sequence[torch.Tensor | None], sizes: tuple[int, ...]) -> Any:
    module = native.kernels()
    assert module is not None
    weight, bias = contiguous(tensors)
    return module.ConvTranspose(address(weight), address(bias), list(sizes))


_packed = Packed(_pack)


@binds(aten.conv_transpose2d.input)
class BoundConvTranspose(BoundConv):
    """A transposed convolution with weights that stay what they are."""

    name = "conv_transpose"
    reads_images = False

    def __init__(
        self,
        target: Any,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Any = (1, 1),
        padding: Any = (0, 0),
        output_padding: Any = (0, 0),
        groups: int = 1,
        dilation: Any = (1, 1),
    ) -> None:
        BoundAten.__init__(self, target, weight, bias, stride, padding, output_padding, groups, dilation)
        kernel = list(weight.shape[2:])
        behind = [numbers(n, 2) for n in (stride, padding, output_padding, dilation)]
        is_plain = groups == 1 and behind == [kernel, [0, 0], [0, 0], [1, 1]]
        if is_plain and weight.numel() > 0 and takes_fp32(weight, bias):
            self._sizes = (weight.shape[0], weight.shape[1], groups, *kernel, *(n for pair in behind for n in pair))
            self.kernel = _packed.get([weight, bias], self._sizes)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Of the result."""
        channels, outputs, _, *kernel = self._sizes[:5]
        require(len(size) == 4 and size[1] == channels, "an image of another rank or other channels")
        return (size[0], outputs, *(n * k for n, k in zip(size[2:], kernel, strict=True)))

    def _made(self, low: Lowering) -> Any:
        return low.kernels.ConvTransposeWith
