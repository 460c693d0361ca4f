"""What a case has to do at least: operations, and bytes that must be read or written once."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastgraph.bench.backends import Setting
from fastgraph.bench.cases import Built


@dataclass(frozen=True)
class Work:
    """``flops``: multiplications and additions of matrix products and convolutions, counted as eager does them
    (direct convolution); the rest is small beside them. Bytes in the setting's dtype for the weights; input and output
    are what the caller has, float32.
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
    weights = sum(parameter.numel() for parameter in built.model.parameters())
    return Work(
        flops=counter.get_total_flops(),
        weight_bytes=weights * setting.torch_dtype.itemsize,
        input_bytes=built.x.numel() * 4,
        output_bytes=output.numel() * 4,
    )
