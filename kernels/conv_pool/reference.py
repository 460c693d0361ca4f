"""conv_pool in plain ATen: the definition, and the oracle of the tests."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def conv_pool(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    pool_kernel_size: Sequence[int],
    pool_stride: Sequence[int],
    pool_padding: Sequence[int],
    ceil_mode: bool,
) -> torch.Tensor:
    """max_pool2d(relu(conv2d(input))), in the weight's dtype. Shapes as in `kernels.conv_pool.op`."""
    conv = torch.relu(F.conv2d(input.to(weight.dtype), weight, bias, list(stride), list(padding), list(dilation)))
    return F.max_pool2d(conv, list(pool_kernel_size), list(pool_stride), list(pool_padding), 1, ceil_mode).to(
        input.dtype
    )
