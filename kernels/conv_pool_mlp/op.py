"""`torch.ops.fastgraph.conv_pool_mlp`: convolution, ReLU, max-pooling, and an mlp whose rows are the pooled rows.

    conv_pool_mlp(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation,
                  int[2] pool_kernel_size, int[2] pool_stride, int[2] pool_padding, bool ceil_mode,
                  Tensor[] weights, Tensor?[] biases, str[] activations) -> Tensor

    output = mlp(conv_pool(input, weight, bias).view(-1, in_features), weights, biases)

input [B, C, H, W]; in_features is that of the first layer; output [B * O * H' * W' / in_features, out_features]. On the
CPU, in fp32 and with W' == in_features (each pooled row is one row of the mlp) nothing but the result leaves the cache;
another W' that divides into rows gives the two ops one after the other. Errors as those of conv_pool and mlp.
"""

from collections.abc import Sequence
from typing import Any

import torch

from fastgraph.kernels import native
from fastgraph.kernels.checks import require, require_like
from fastgraph.kernels.conv_pool import op as conv_pool
from fastgraph.kernels.conv_pool.op import Geometry
from fastgraph.kernels.conv_pool_mlp import reference
from fastgraph.kernels.library import Arguments, Op
from fastgraph.kernels.mlp import op as mlp
from fastgraph.kernels.mlp.op import Biases, Weights


def split(arguments: Arguments) -> tuple[torch.Tensor, torch.Tensor | None, Geometry, Weights, Biases, list[str]]:
    """weight, bias, geometry, weights, biases, activations."""
    weight, bias, *geometry, weights, biases, activations = arguments
    return weight, bias, Geometry(*geometry), weights, biases, activations


def check_constants(*arguments: Any) -> None:
    """The contract, as much of it as the input has no part in."""
    weight, bias, geometry, weights, biases, activations = split(arguments)
    conv_pool.check_constants("conv_pool_mlp", weight, bias, geometry)
    mlp.check_layers("conv_pool_mlp", weights, biases, activations)


def check(input: torch.Tensor, *arguments: Any) -> None:
    """The contract of the op, on real and on fake tensors."""
    weight, bias, geometry, weights, biases, activations = split(arguments)
    conv_pool.check("conv_pool_mlp", input, weight, bias, geometry)
    mlp.check_layers("conv_pool_mlp", weights, biases, activations)
    require_like("conv_pool_mlp", input, weights=weights, biases=biases)
    features = weights[0].shape[1]
    elements = pooled_elements(input, weight, geometry)
    needs = f"needs pooled rows that divide into [-1, {features}]"
    require(elements % features == 0, "conv_pool_mlp: input: {}, got {}", needs, input.shape)


def pooled_elements(input: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> Any:
    """Number of elements after the pool."""
    batch, channels, height, width = conv_pool.output_shape(input, weight, geometry)
    return batch * channels * height * width


def output_shape(input: torch.Tensor, *arguments: Any) -> tuple[Any, Any]:
    """Shape of the result, [rows, out_features]."""
    weight, _, geometry, weights, _, _ = split(arguments)
    return pooled_elements(input, weight, geometry) // weights[0].shape[1], weights[-1].shape[0]


def row_by_row(input: torch.Tensor, *arguments: Any) -> bool:
    """Whether each pooled row is one row of the mlp."""
    weight, _, geometry, weights, _, _ = split(arguments)
    return bool(conv_pool.output_shape(input, weight, geometry)[3] == weights[0].shape[1])


def constants(*arguments: Any) -> tuple[list[torch.Tensor | None], tuple[Any, ...]]:
    """conv_pool's, then mlp's."""
    weight, bias, *geometry, weights, biases, activations = arguments
    tensors, numbers = conv_pool.constants(weight, bias, *geometry)
    chain, names = mlp.constants(weights, biases, activations)
    return [*tensors, *chain] if chain else [], (*numbers, *names)


def pack(tensors: Sequence[torch.Tensor | None], *others: Any) -> Any:
    """Both kernels, which their ops keep too."""
    *geometry, activations = others
    weight, bias, *chain = tensors
    weights, biases = chain[: len(activations)], chain[len(activations) :]
    first, then = conv_pool.OP.packing((weight, bias, *geometry)), mlp.OP.packing((weights, biases, activations))
    module = native.kernels()
    assert module is not None
    assert first is not None
    assert then is not None
    return None if first.kernel is None else module.ConvPoolMlp(first.kernel, then.kernel)


def in_two(input: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """conv_pool, then mlp."""
    weight, bias, geometry, weights, biases, activations = split(arguments)
    pooled = conv_pool.OP.target(input, weight, bias, *geometry)
    result: torch.Tensor = mlp.OP.target(pooled.view(-1, weights[0].shape[1]), weights, biases, activations)
    return result


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
    pooled = conv_pool.conv_pool_reference(input, weight, bias, *ctx.geometry)
    rows = pooled.view(-1, weights[0].shape[1])
    grad, weight_grads, bias_grads = mlp.chain_backward(grad, rows, weights, biases, ctx.activations)
    conv_grads = conv_pool.conv_pool_backward(grad.view(pooled.shape), input, weight, bias, ctx.geometry)
    return (*conv_grads, *(None for _ in ctx.geometry), weight_grads, bias_grads, None)


OP = Op(
    "conv_pool_mlp",
    f"(Tensor input, Tensor weight, Tensor? bias, {conv_pool.GEOMETRY}, "
    "Tensor[] weights, Tensor?[] biases, str[] activations) -> Tensor",
    check=check,
    check_constants=check_constants,
    output_shape=output_shape,
    reference=lambda input, *arguments: reference.conv_pool_mlp(input, *split(arguments)),
    constants=constants,
    pack=pack,
    run=conv_pool.run,
    setup_context=setup_context,
    backward=backward,
    takes=row_by_row,
    otherwise=in_two,
)
