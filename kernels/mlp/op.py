"""`torch.ops.fastgraph.mlp`: a chain of Linear layers with activations.

    mlp(Tensor input, Tensor[] weights, Tensor?[] biases, str[] activations) -> Tensor

    x_0 = input                                       [..., in_features]
    x_l = activation_l(x_{l-1} weights_l^T + biases_l)   weights_l [out_l, in_l], biases_l [out_l] or None

All tensors have one device and one floating dtype, but for an fp32 input beside bf16 weights: then the layers compute
as with bf16, and the result is fp32. fp32 and bf16 on the CPU run in compiled kernels (fp32 accumulation, for fp32 in a
fixed order, see kernels/cpu/gemm/tile.h), fp32, fp16 and bf16 on CUDA in Triton kernels, everything else in ATen. An
activation is "none", one of `ACTIVATIONS`, or several joined by "+"; softmax and log_softmax only as the very last.
RuntimeError for tensors that do not fit together, ValueError for activations.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from fastgraph.kernels import native
from fastgraph.kernels.checks import require, require_like
from fastgraph.kernels.library import Op, Size
from fastgraph.kernels.mlp import reference
from fastgraph.kernels.weights import address

# The order of `enum class Activation` in kernels/cpu/activation.h.
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "softmax", "log_softmax")
LAST_ONLY = ("softmax", "log_softmax")
MAX_ACTIVATIONS = 4  # a layer; kMaxActivations in kernels/mlp/cpu.h

Weights = Sequence[torch.Tensor]
Biases = Sequence[torch.Tensor | None]


def check_activations(activations: Sequence[str]) -> None:
    """ValueError unless every activation is known, and softmax only the very last."""
    for layer, activation in enumerate(activations):
        names = reference.split(activation)
        if len(names) > MAX_ACTIVATIONS:
            raise ValueError(
                f"mlp: activations[{layer}]: needs at most {MAX_ACTIVATIONS} joined by '+', got {activation!r}"
            )
        for i, name in enumerate(names):
            if name not in reference.ACTIVATIONS:
                raise ValueError(f"mlp: activations[{layer}]: needs one of {', '.join(ACTIVATIONS)}, got {name!r}")
            if name in LAST_ONLY and not (layer == len(activations) - 1 and i == len(names) - 1):
                raise ValueError(
                    f"mlp: activations[{layer}]: {name} needs to be the last of all, got {list(activations)}"
                )


def check_layers(op: str, weights: Weights, biases: Biases, activations: Sequence[str]) -> None:
    """The chain in itself: as many of each, features that fit."""
    require(len(weights) > 0, "{}: weights: needs at least one layer, got none", op)
    counts = (len(weights), len(biases), len(activations))
    same = counts[0] == counts[1] == counts[2]
    require(same, "{}: needs as many weights, biases and activations, got {}", op, ", ".join(map(str, counts)))
    check_activations(activations)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        message = "needs shape [out_features, in_features]"
        require(weight.dim() == 2, "{}: weights[{}]: {}, got {}", op, i, message, weight.shape)
        if i > 0:
            before = weights[i - 1].shape[0]
            fits = weight.shape[1] == before
            require(fits, "{}: weights[{}]: needs shape [*, {}], got {}", op, i, before, weight.shape)
        if bias is not None:
            fits = bias.dim() == 1 and bias.shape[0] == weight.shape[0]
            require(fits, "{}: biases[{}]: needs shape [{}], got {}", op, i, weight.shape[0], bias.shape)


def check(input: torch.Tensor, weights: Weights, biases: Biases, activations: Sequence[str]) -> None:
    """The contract of the op, on real and on fake tensors."""
    check_layers("mlp", weights, biases, activations)
    features = weights[0].shape[1]
    fits = input.dim() >= 1 and input.shape[-1] == features
    require(fits, "mlp: input: needs shape [..., {}], got {}", features, input.shape)
    require_like("mlp", input, weights=weights, biases=biases)


def constants(
    weights: Weights, biases: Biases, activations: Sequence[str]
) -> tuple[list[torch.Tensor | None], tuple[tuple[str, ...]]]:
    """All weights, then all biases; the activations. No tensors where there are not as many of each."""
    same = len(weights) == len(biases) == len(activations)
    return [*weights, *biases] if same else [], (tuple(activations),)


def pack(tensors: Sequence[torch.Tensor | None], activations: tuple[str, ...]) -> Any:
    """Packed weights of a chain; `tensors` are all weights, then all biases. fp32 or bf16, CPU."""
    module = native.kernels()
    assert module is not None
    count = len(activations)
    layers: list[Any] = []
    alive: list[Any] = []
    for weight, bias, activation in zip(tensors[:count], tensors[count:], activations, strict=True):
        assert weight is not None
        weight = weight.detach().contiguous()
        bias = None if bias is None else bias.detach().float().contiguous()
        alive += [weight, bias]
        numbers = [ACTIVATIONS.index(name) for name in reference.split(activation)]
        layers.append((weight.data_ptr(), address(bias), *weight.shape, numbers))
    return module.Mlp(layers, alive[0].dtype is torch.bfloat16)


def run(kernel: Any, input: torch.Tensor, size: Size) -> torch.Tensor:
    """The kernel on rows [..., in_features], fp32 or bf16; `size` is that of the result."""
    output = input.new_empty(size)
    rows = input if input.dim() == 2 and input.stride(1) == 1 else input.contiguous()
    kernel.run([rows], [output], torch.get_num_threads())
    return output


def output_shape(input: torch.Tensor, weights: Weights, biases: Biases, activations: Sequence[str]) -> tuple[Any, ...]:
    """Shape of the result, [..., out_features of the last layer]."""
    return (*input.shape[:-1], weights[-1].shape[0])


def activation_backward(name: str, grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Gradient at x, given the gradient at y = activation(x); the formulas that eager uses."""
    aten = torch.ops.aten
    match name:
        case "relu":
            return aten.threshold_backward(grad, y, 0)
        case "gelu":
            return aten.gelu_backward(grad, x)
        case "gelu_tanh":
            return aten.gelu_backward(grad, x, approximate="tanh")
        case "silu" if torch.is_grad_enabled():  # silu_backward has no derivative of its own
            s = torch.sigmoid(x)
            return grad * s * (1 + x * (1 - s))
        case "silu":
            return aten.silu_backward(grad, x)
        case "tanh":
            return aten.tanh_backward(grad, y)
        case "sigmoid":
            return aten.sigmoid_backward(grad, y)
        case "softmax":
            return aten._softmax_backward_data(grad, y, -1, y.dtype)
        case "log_softmax":
            return aten._log_softmax_backward_data(grad, y, -1, y.dtype)
    raise ValueError(f"mlp: no gradient for activation {name!r}")


def chain_backward(
    grad: torch.Tensor, input: torch.Tensor, weights: Weights, biases: Biases, activations: Sequence[str]
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor | None]]:
    """Gradients of input, weights and biases. Layers' outputs are computed again, in ATen, rather than kept."""
    inputs, steps = [], []  # a layer's input; (name, before, after) for each of its activations
    x = input.to(weights[0].dtype)
    grad = grad.to(x.dtype)
    for weight, bias, activation in zip(weights, biases, activations, strict=True):
        inputs.append(x)
        x = torch.nn.functional.linear(x, weight, bias)
        layer_steps = []
        for name in reference.split(activation):
            y = reference.ACTIVATIONS[name](x)
            layer_steps.append((name, x, y))
            x = y
        steps.append(layer_steps)
    weight_grads: list[torch.Tensor] = []
    bias_grads: list[torch.Tensor | None] = []
    for x, weight, bias, layer_steps in zip(inputs[::-1], weights[::-1], biases[::-1], steps[::-1], strict=True):
        for name, before, after in reversed(layer_steps):
            grad = activation_backward(name, grad, before, after)
        rows = grad.reshape(-1, grad.shape[-1])
        weight_grads.insert(0, rows.t() @ x.reshape(-1, x.shape[-1]))
        bias_grads.insert(0, None if bias is None else rows.sum(0))
        grad = grad @ weight
    return grad.to(input.dtype), weight_grads, bias_grads


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor | None) -> None:
    """Keeps the op's own arguments, no intermediate result."""
    input, weights, biases, activations = inputs
    ctx.layers, ctx.has_bias, ctx.activations = len(weights), [b is not None for b in biases], activations
    ctx.save_for_backward(input, *weights, *(b for b in biases if b is not None))


def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    """Gradients for (input, weights, biases, activations)."""
    input, *rest = ctx.saved_tensors
    weights, present = rest[: ctx.layers], iter(rest[ctx.layers :])
    biases = [next(present) if has else None for has in ctx.has_bias]
    return (*chain_backward(grad, input, weights, biases, ctx.activations), None)


OP = Op(
    "mlp",
    "(Tensor input, Tensor[] weights, Tensor?[] biases, str[] activations) -> Tensor",
    check=check,
    check_constants=partial(check_layers, "mlp"),
    output_shape=output_shape,
    reference=reference.mlp,
    constants=constants,
    pack=pack,
    run=run,
    setup_context=setup_context,
    backward=backward,
    takes_row_strides=True,
)
