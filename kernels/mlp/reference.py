"""mlp in plain ATen: the definition, and the oracle of the tests."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softmax": partial(torch.softmax, dim=-1),
    "log_softmax": partial(torch.log_softmax, dim=-1),
}


def split(activation: str) -> list[str]:
    """The names in an activation string: "none" is no name, "relu+sigmoid" two, applied from left to right."""
    return [] if activation == "none" else activation.split("+")


def mlp(
    input: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    activations: Sequence[str],
) -> torch.Tensor:
    """x <- activation_l(x W_l^T + b_l) for every layer l, in the weights' dtype. Shapes as in `kernels.mlp.op`."""
    dtype, input = input.dtype, input.to(weights[0].dtype)
    for weight, bias, activation in zip(weights, biases, activations, strict=True):
        input = F.linear(input, weight, bias)
        for name in split(activation):
            input = ACTIVATIONS[name](input)
    return input.to(dtype)
