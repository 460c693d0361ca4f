"""`torch.ops.fastgraph.conv_pool_mlp`: convolution, ReLU, max-pooling, and an mlp whose rows are the pooled rows.

    conv_pool_mlp(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation,
                  int[2] pool_kernel_size, int[2] pool_stride, int[2] pool_padding, bool ceil_mode,
                  Tensor[] weights, Tensor?[] biases, str[] activations) -> Tensor

    output = mlp(conv_pool(input, weight, bias).view(-1, in_features), weights, biases)

input [B, C, H, W]; in_features is that of the first layer; output [B * O * H' * W' / in_features, out_features]. On the
CPU, in fp32 and with W' == in_features (each pooled row is one row of the mlp) nothing but the result leaves the cache;
another W' that divides into rows gives the two ops one after the other. Errors as those of conv_pool and mlp.
"""

from collections.abc import Callable
from typing import Any

import torch

from fastgraph.kernels import autograd, native
from fastgraph.kernels.checks import require
from fastgraph.kernels.conv_pool import op as conv_pool
from fastgraph.kernels.conv_pool_mlp import reference
from fastgraph.kernels.cuda import dispatch as cuda
from fastgraph.kernels.mlp import op as mlp
from fastgraph.kernels.mlp.op import LIBRARY, Biases, Weights

LIBRARY.define(
    f"conv_pool_mlp(Tensor input, Tensor weight, Tensor? bias, {conv_pool.GEOMETRY}, "
    "Tensor[] weights, Tensor?[] biases, str[] activations) -> Tensor"
)

Arguments = tuple[Any, ...]  # all but the input, in the schema's order


def split(
    arguments: Arguments,
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[Any, ...], Weights, Biases, list[str]]:
    """weight, bias, geometry, weights, biases, activations."""
    weight, bias, *geometry, weights, biases, activations = arguments
    return weight, bias, tuple(geometry), weights, biases, activations


def check(input: torch.Tensor, arguments: Arguments) -> None:
    """The contract of the op, on real and on fake tensors."""
    weight, bias, geometry, weights, biases, activations = split(arguments)
    conv_pool.check("conv_pool_mlp", input, weight, bias, geometry)
    mlp.check_layers("conv_pool_mlp", weights, biases, activations)
    mlp.require_like("conv_pool_mlp", input, weights=weights, biases=biases)
    features = weights[0].shape[1]
    elements = pooled_elements(input, weight, geometry)
    needs = f"needs pooled rows that divide into [-1, {features}]"
    require(elements % features == 0, "conv_pool_mlp: input: {}, got {}", needs, input.shape)


def pooled_elements(input: torch.Tensor, weight: torch.Tensor, geometry: tuple[Any, ...]) -> Any:
    """Number of elements after the pool."""
    batch, channels, height, width = conv_pool.output_shape(input, weight, geometry)
    return batch * channels * height * width


def output_shape(input: torch.Tensor, arguments: Arguments) -> tuple[Any, Any]:
    """Shape of the result, [rows, out_features]."""
    weight, _, geometry, weights, _, _ = split(arguments)
    return pooled_elements(input, weight, geometry) // weights[0].shape[1], weights[-1].shape[0]


def row_by_row(input: torch.Tensor, arguments: Arguments) -> bool:
    """Whether each pooled row is one row of the mlp."""
    weight, _, geometry, weights, _, _ = split(arguments)
    return bool(conv_pool.output_shape(input, weight, geometry)[3] == weights[0].shape[1])


def packed(arguments: Arguments) -> Any:
    """The packed weights of both, as one kernel."""
    weight, bias, geometry, weights, biases, activations = split(arguments)
    module = native.kernels()
    assert module is not None
    return module.ConvPoolMlp(conv_pool.packed(weight, bias, geometry), mlp.packed(weights, biases, activations))


def run(kernel: Any, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The kernel on images [B, C, H, W], contiguous, fp32 or bf16; `size` is that of the result."""
    output = image.new_empty(*size)
    batch = image.shape[0]
    if batch and image.dtype is not torch.float32:
        for part, to in conv_pool.widened(image, output.view(batch, size[0] // batch, size[1])):
            to.copy_(run(kernel, part, (to.shape[0] * to.shape[1], size[1])).view(to.shape))
    elif batch:
        kernel.run([image], [output], torch.get_num_threads())
    return output


def in_two(input: torch.Tensor, arguments: Arguments) -> torch.Tensor:
    """conv_pool, then mlp."""
    weight, bias, geometry, weights, biases, activations = split(arguments)
    pooled = torch.ops.fastgraph.conv_pool.default(input, weight, bias, *geometry)
    return torch.ops.fastgraph.mlp.default(pooled.view(-1, weights[0].shape[1]), weights, biases, activations)


def conv_pool_mlp_cpu(input: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """The op on CPU tensors."""
    check(input, arguments)
    weight, bias, geometry, weights, biases, activations = split(arguments)
    taken = native.takes(weight, bias, *weights, *biases) and native.is_plain(input)
    if not taken or weight.numel() == 0 or not row_by_row(input, arguments):
        return in_two(input, arguments)
    return run(packed(arguments), input.contiguous(), output_shape(input, arguments))


def conv_pool_mlp_aten(input: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """The op on tensors of any other device."""
    check(input, arguments)
    return reference.conv_pool_mlp(input, *split(arguments))


def fake(input: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """Shape and dtype of the result."""
    check(input, arguments)
    return input.new_empty(output_shape(input, arguments))


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor | None) -> None:
    """Keeps the op's own arguments, no intermediate result."""
    input, *arguments = inputs
    weight, bias, ctx.geometry, weights, biases, ctx.activations = split(tuple(arguments))
    ctx.has_conv_bias, ctx.layers, ctx.has_bias = bias is not None, len(weights), [b is not None for b in biases]
    ctx.save_for_backward(input, weight, *weights, *(b for b in (bias, *biases) if b is not None))


def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    """Gradients for the op's arguments: the mlp's, then the convolution's."""
    input, weight, *rest = ctx.saved_tensors
    weights, present = rest[: ctx.layers], iter(rest[ctx.layers :])
    bias = next(present) if ctx.has_conv_bias else None
    biases = [next(present) if has else None for has in ctx.has_bias]
    pooled = conv_pool.conv_pool_reference(input, weight, bias, ctx.geometry)
    rows = pooled.view(-1, weights[0].shape[1])
    grad, weight_grads, bias_grads = mlp.chain_backward(grad, rows, weights, biases, ctx.activations)
    conv_grads = conv_pool.conv_pool_backward(grad.view(pooled.shape), input, weight, bias, ctx.geometry)
    return (*conv_grads, *(None for _ in ctx.geometry), weight_grads, bias_grads, None)


LIBRARY.impl("conv_pool_mlp", conv_pool_mlp_cpu, "CPU")
LIBRARY.impl("conv_pool_mlp", conv_pool_mlp_aten, "CompositeExplicitAutograd")
cuda.register(LIBRARY, "conv_pool_mlp", lambda input, *rest: check(input, rest), conv_pool_mlp_aten)
torch.library.register_fake("fastgraph::conv_pool_mlp", fake, lib=LIBRARY)
autograd.register(LIBRARY, "conv_pool_mlp", setup_context, backward, conv_pool_mlp_aten)


class Direct:
    """The direct door: packed weights, called without the dispatcher (see kernels.mlp.op.Direct)."""

    def __init__(self, *arguments: Any) -> None:
        weight, bias, geometry, weights, biases, activations = split(arguments)
        conv_pool.check_geometry("conv_pool_mlp", geometry)
        mlp.check_layers("conv_pool_mlp", weights, biases, activations)
        self._arguments = arguments
        taken = native.takes(weight, bias, *weights, *biases) and weight.numel() > 0
        self.kernel = packed(arguments) if taken else None
        self._checked: tuple[Any, Any] = (None, None)  # the last input shape, and the result's

    def output_size(self, input: torch.Tensor) -> tuple[int, int] | None:
        """Size of the result where the kernel takes this input as it is, else None. Errors as those of the op."""
        if self.kernel is None or not native.is_plain(input, torch.float32) or not input.is_contiguous():
            return None
        shape, size = self._checked
        if input.shape != shape:
            check(input, self._arguments)
            size = output_shape(input, self._arguments) if row_by_row(input, self._arguments) else None
            self._checked = (input.shape, size)
        return size

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        size = self.output_size(input)
        if size is None:
            return torch.ops.fastgraph.conv_pool_mlp.default(input, *self._arguments)
        return run(self.kernel, input, size)

    def with_gradients(self, call: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        """`call`, which computes what this does, with gradients for the input and the op's arguments."""
        return autograd.with_gradients("conv_pool_mlp", call, self._arguments, setup_context, backward)
