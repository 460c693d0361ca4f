"""What a case has to do at least: operations, and bytes that must be read or written once."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastgraph.bench.backends import Setting
from fastgraph.bench.cases import Built


@dataclass(frozen=True)
class Work:
    """``flops``: multiplications and additions of matrix products and convolutions, counted as eager does them
    (direct convolution); the rest is small beside them. Bytes in the setting's dtype for the weights, without tables
    of embeddings, of which a call reads few rows; input and output are what the caller has.
    """

    flops: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int

    @property
    def bytes(self) -> int:
        """All that must be moved at least."""
        return self.weight_bytes + self.input_bytes + self.output_bytes


def work_of(built: Built, setting: Setting) -> Work | None:
    """Counts one call, on tensors without data; None for a model that does not run on such tensors."""
    model = copy.deepcopy(built.model).to("meta")
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            output = model(built.x.to("meta"))
    except (RuntimeError, NotImplementedError):
        return None
    return Work(
        flops=counter.get_total_flops(),
        weight_bytes=_weights(built.model) * setting.torch_dtype.itemsize,
        input_bytes=built.x.numel() * built.x.itemsize,
        output_bytes=output.numel() * 4,
    )


def _weights(model: nn.Module) -> int:
    """How many weights a call has to read."""
    layers = [layer for layer in model.modules() if not isinstance(layer, (nn.Embedding, nn.EmbeddingBag))]
    return sum(
        parameter.numel() for parameter in {p for layer in layers for p in layer._parameters.values() if p is not None}
    )
