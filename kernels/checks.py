"""Checks that every op makes of its tensors. A message names the argument, what it needs and what came."""

from collections.abc import Sequence

import torch


def require(condition: bool, message: str) -> None:
    """RuntimeError, which is what eager raises for wrong tensors, unless `condition`."""
    if not condition:
        raise RuntimeError(message)


def shape_of(tensor: torch.Tensor) -> str:
    """The shape as users write it: [2, 784]."""
    return str(list(tensor.shape))


def require_like(op: str, input: torch.Tensor, **others: torch.Tensor | Sequence[torch.Tensor | None] | None) -> None:
    """`input` is floating point; all others have its device and one dtype: its own, or on the CPU bf16 beside fp32."""
    require(input.is_floating_point(), f"{op}: input: needs a floating-point dtype, got {input.dtype}")
    dtype = None
    for name, value in others.items():
        for tensor in [value] if value is None or isinstance(value, torch.Tensor) else value:
            if tensor is None:
                continue
            mixed = (tensor.dtype, input.dtype) == (torch.bfloat16, torch.float32) and not tensor.is_cuda
            same = tensor.dtype == input.dtype or mixed
            require(same, f"{op}: input: needs the dtype of {name}, {tensor.dtype}, got {input.dtype}")
            same = dtype is None or tensor.dtype == dtype
            require(same, f"{op}: {name}: needs the dtype of all weights, {dtype}, got {tensor.dtype}")
            dtype = tensor.dtype
            same = tensor.device == input.device
            require(same, f"{op}: input: needs the device of {name}, {tensor.device}, got {input.device}")
