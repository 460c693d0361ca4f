"""Operators that torch.onnx has no translation for, in standard ONNX operators.

Each function takes what the ATen operator of its name takes, as `torch.onnx.export` hands it on: ONNX values for
tensors, Python values for the rest. It builds the nodes that stand for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from onnxscript import opset18

aten = torch.ops.aten
op: Any = opset18  # whose annotations know only ONNX values, no Python numbers


def translations() -> dict[Any, Callable[..., Any]]:
    """The table for `torch.onnx.export`: ATen operators and what stands for them."""
    return {
        aten._adaptive_avg_pool2d.default: adaptive_avg_pool,
        aten._adaptive_avg_pool3d.default: adaptive_avg_pool,
        aten._cdist_forward.default: cdist,
        aten.copysign.Tensor: copysign,
        aten.fmax.default: fmax,
        aten.fmin.default: fmin,
        aten.hypot.default: hypot,
        aten.rrelu.default: rrelu,
        aten.searchsorted.Tensor: searchsorted,
    }


def adaptive_avg_pool(x: Any, output_size: Sequence[int]) -> Any:
    """The mean of ``output_size`` windows along each of the last axes, for every size of the input.

    torch.onnx's own way is to decompose it for the size of the example, into an ordinary pool where it is a multiple.
    """
    letters, rank = "abcdefgh", len(x.shape)
    for axis, size in enumerate(output_size, rank - len(output_size)):
        before = letters[:rank]
        equation = f"{before},z{before[axis]}->{before.replace(before[axis], 'z')}"
        x = op.Einsum(x, _windows(x, axis, size), equation=equation)
    return x


def _windows(x: Any, axis: int, size: int) -> Any:
    """[size, n]: row i weighs the n values of the axis, those from floor(i n / size) up to ceil((i + 1) n / size)."""
    n, one = op.Shape(x, start=axis, end=axis + 1), op.Constant(value_int=1)
    place = op.Range(op.Constant(value_int=0), op.Squeeze(n), one)
    window = op.Unsqueeze(op.Range(op.Constant(value_int=0), size, one), [1])
    start = op.Div(op.Mul(window, n), size)
    end = op.Div(op.Add(op.Mul(op.Add(window, 1), n), size - 1), size)
    inside = op.And(op.GreaterOrEqual(place, start), op.Less(place, end))
    return op.Div(op.CastLike(inside, x), op.CastLike(op.Sub(end, start), x))


def cdist(lhs: Any, rhs: Any, p: float, compute_mode: int | None = None) -> Any:
    """The distance of every row of `lhs` [.., P, M] from every row of `rhs` [.., R, M], [.., P, R]."""
    difference = op.Abs(op.Sub(op.Unsqueeze(lhs, [-2]), op.Unsqueeze(rhs, [-3])))
    if p == 1:
        return op.ReduceSum(difference, [-1], keepdims=False)
    if p == 2:
        return op.Sqrt(op.ReduceSum(op.Mul(difference, difference), [-1], keepdims=False))
    if p == float("inf"):
        return op.ReduceMax(difference, [-1], keepdims=False)
    raise NotImplementedError(f"p must be 1, 2 or inf; got {p}")


def copysign(magnitude: Any, sign: Any) -> Any:
    """`magnitude` with the sign of `sign`, of -0 too."""
    zero = op.CastLike(0.0, sign)
    negative = op.Or(op.Less(sign, zero), op.And(op.Equal(sign, zero), op.Less(op.Reciprocal(sign), zero)))
    sign = op.Where(negative, op.CastLike(-1.0, magnitude), op.CastLike(1.0, magnitude))
    return op.Mul(op.Abs(magnitude), sign)  # a Where of the results would lose -0 in onnxruntime 1.31


def fmax(lhs: Any, rhs: Any) -> Any:
    """The larger one; where one is NaN the other."""
    return op.Where(op.IsNaN(lhs), rhs, op.Where(op.IsNaN(rhs), lhs, op.Max(lhs, rhs)))


def fmin(lhs: Any, rhs: Any) -> Any:
    """The smaller one; where one is NaN the other."""
    return op.Where(op.IsNaN(lhs), rhs, op.Where(op.IsNaN(rhs), lhs, op.Min(lhs, rhs)))


def hypot(lhs: Any, rhs: Any) -> Any:
    """sqrt(lhs^2 + rhs^2), scaled by the larger one so that no square is too large."""
    lhs, rhs = op.Abs(lhs), op.Abs(rhs)
    larger, smaller = op.Max(lhs, rhs), op.Min(lhs, rhs)
    ratio = op.Div(smaller, op.Where(op.Equal(larger, op.CastLike(0.0, larger)), op.CastLike(1.0, larger), larger))
    result = op.Mul(larger, op.Sqrt(op.Add(op.Mul(ratio, ratio), op.CastLike(1.0, ratio))))
    infinite = op.CastLike(float("inf"), lhs)
    return op.Where(op.Or(op.Equal(lhs, infinite), op.Equal(rhs, infinite)), infinite, result)


def rrelu(x: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None) -> Any:
    """Out of training, the leaky ReLU of the mean slope."""
    if training:
        raise NotImplementedError("rrelu in training mode draws random numbers")
    return op.LeakyRelu(x, alpha=(lower + upper) / 2)


def searchsorted(
    sequence: Any,
    values: Any,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Any:
    """How many of `sequence` [N] or [.., N] are less than each of `values` [.., M], or not greater."""
    if sorter is not None:
        raise NotImplementedError("sorter must be None")
    if len(sequence.shape) > 1:
        sequence = op.Unsqueeze(sequence, [-2])
    compare = op.LessOrEqual if right or side == "right" else op.Less
    before = compare(sequence, op.Unsqueeze(values, [-1]))
    count = op.ReduceSum(op.Cast(before, to=onnx.TensorProto.INT64), [-1], keepdims=False)
    return op.Cast(count, to=onnx.TensorProto.INT32) if out_int32 else count
