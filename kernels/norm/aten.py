"""ATen's norms with constant weights."""

from collections.abc import Sequence
from typing import Any

import torch

from fastgraph.kernels import native
from fastgraph.kernels.lowering import BoundAten, Lowering, Operand, binds, require, size_of, takes_fp32
from fastgraph.kernels.pointwise.aten import pointwise
from fastgraph.kernels.pointwise.op import instruction
from fastgraph.kernels.weights import Packed, address, contiguous

aten = torch.ops.aten


def _layer_norm(tensors: Sequence[torch.Tensor | None], size: int, eps: float) -> Any:
    weight, bias = contiguous(tensors)
    module = native.kernels()
    assert module is not None
    return module.LayerNorm(size, address(weight), address(bias), eps)


_layer_norms = Packed(_layer_norm)


@binds(aten.layer_norm.default)
class BoundLayerNorm(BoundAten):
    """Over the last axis, or the last axes taken as one."""

    name = "norm"

    def __init__(
        self,
        target: Any,
        normalized_shape: Sequence[int],
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        eps: float = 1e-5,
        cudnn_enable: bool = True,
    ) -> None:
        super().__init__(target, normalized_shape, weight, bias, eps, cudnn_enable)
        self._shape = tuple(normalized_shape)
        self._axes, size = len(normalized_shape), torch.Size(normalized_shape).numel()
        if size > 0 and takes_fp32(weight, bias):
            tensors = [weight, bias]
            kept = weight is not None  # else nothing tells for how long
            self.kernel = _layer_norms.get(tensors, size, eps) if kept else _layer_norm(tensors, size, eps)

    def lower(self, low: Lowering, x: Operand) -> Operand:
        """Adds the step."""
        require(tuple(size_of(x))[-self._axes :] == self._shape, "features of other sizes")
        x = low.contiguous(x)
        result = low.new(x.shape)
        axes = x.dim() - self._axes
        if self._axes > 1:
            low.step(self.kernel, [x.flatten(axes)], result.flatten(axes))
            return result
        return low.step(self.kernel, [x], result)


@binds(aten.batch_norm.default)
class BoundBatchNorm(BoundAten):
    """With running statistics: a scale and a shift for each channel."""

    name = "norm"

    def __init__(
        self,
        target: Any,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool = True,
    ) -> None:
        super().__init__(target, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled)
        if training or running_mean is None or running_var is None:
            return
        if not takes_fp32(weight, bias, running_mean, running_var):
            return
        with torch.inference_mode(False), torch.no_grad():
            scale = (running_var.double() + eps).rsqrt()
            scale = scale if weight is None else scale * weight.double()
            shift = -running_mean.double() * scale
            shift = shift if bias is None else shift + bias.double()
            self._scale, self._shift = scale.float(), shift.float()
        self.kernel = native.kernels()  # what it needs is in the plan's elementwise kernels

    def lower(self, low: Lowering, x: Operand) -> Operand:
        """x scale + shift, in one operation, open for what follows."""
        rank = len(size_of(x))
        require(rank > 1 and size_of(x)[1] == len(self._scale), "other channels")
        scale, shift = (low.constant(t).reshape([-1] + [1] * (rank - 2)) for t in (self._scale, self._shift))
        return pointwise(low, lambda a, b, c: instruction("addcmul", c, a, b, p=1.0), x, scale, shift)


@binds(aten.group_norm.default)
class BoundGroupNorm(BoundAten):
    """Over the pixels and channels of each group of channels."""

    name = "norm"

    def __init__(
        self,
        target: Any,
        num_groups: int,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        eps: float = 1e-5,
        cudnn_enabled: bool = True,
    ) -> None:
        super().__init__(target, num_groups, weight, bias, eps, cudnn_enabled)
        self._tensors = contiguous([weight, bias])
        self._groups, self._eps = num_groups, eps
        self.kernel = native.kernels() if takes_fp32(weight, bias) else None

    def lower(self, low: Lowering, x: Operand) -> Operand:
        """Adds the step."""
        channels = size_of(x)[1] if len(size_of(x)) > 1 else 0
        weight, bias = self._tensors
        fits = all(t is None or len(t) == channels for t in self._tensors)
        require(channels > 0 and channels % self._groups == 0 and fits, "other channels")
        x = low.channels_last(x)
        kernel = low.kernels.GroupNorm(self._groups, x.shape[1], address(weight), address(bias), self._eps)
        return low.step(kernel, [x], low.result(x.shape, channels_last=True))
