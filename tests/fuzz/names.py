"""What the source of a generated module refers to."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["F", "Pair", "ReverseGradient", "StraightThrough", "nn", "torch"]


class Pair(NamedTuple):
    """A result with names."""

    first: Any
    second: Any


class StraightThrough(torch.autograd.Function):
    """sign(x) with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class ReverseGradient(torch.autograd.Function):
    """x with its gradient turned round."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return -0.5 * gradient
