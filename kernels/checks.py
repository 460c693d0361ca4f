"""Checks that every op makes of its tensors. A message names the argument, what it needs and what came."""

from collections.abc import Sequence
from typing import Any

import torch


def require(condition: bool, message: str, *values: Any) -> None:
    """RuntimeError, which is what eager raises for wrong tensors, unless `condition`.

    The message, a format string, and its values are put together only where they are shown: in a call of three layers
    eighteen of them took twice the kernel's time. Shapes are shown as users write them: [2, 784].
    """
    if not condition:
        raise RuntimeError(message.format(*(list(v) if isinstance(v, torch.Size) else v for v in values)))


def require_like(op: str, input: torch.Tensor, **others: torch.Tensor | Sequence[torch.Tensor | None] | None) -> None:
    """`input` is floating point; all others have its device and one dtype: its own, or on the CPU bf16 beside fp32."""
    require(input.is_floating_point(), "{}: input: needs a floating-point dtype, got {}", op, input.dtype)
    dtype = None
    for name, value in others.items():
        for tensor in [value] if value is None or isinstance(value, torch.Tensor) else value:
            if tensor is None:
                continue
            mixed = (tensor.dtype, input.dtype) == (torch.bfloat16, torch.float32) and not tensor.is_cuda
            same = tensor.dtype == input.dtype or mixed
            require(same, "{}: input: needs the dtype of {}, {}, got {}", op, name, tensor.dtype, input.dtype)
            same = dtype is None or tensor.dtype == dtype
            require(same, "{}: {}: needs the dtype of all weights, {}, got {}", op, name, dtype, tensor.dtype)
            dtype = tensor.dtype
            same = tensor.device == input.device
            require(same, "{}: input: needs the device of {}, {}, got {}", op, name, tensor.device, input.device)
