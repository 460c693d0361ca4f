"""conv_pool_mlp in plain ATen: the definition, and the oracle of the tests."""

from collections.abc import Sequence
from typing import Any

import torch

from fastgraph.kernels.conv_pool.reference import conv_pool
from fastgraph.kernels.mlp.reference import mlp


def conv_pool_mlp(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: tuple[Any, ...],
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    activations: Sequence[str],
) -> torch.Tensor:
    """mlp(conv_pool(input).view(-1, in_features)). Shapes as in `kernels.conv_pool_mlp.op`."""
    pooled = conv_pool(input, weight, bias, *geometry)
    return mlp(pooled.contiguous().view(-1, weights[0].shape[1]), weights, biases, activations)
