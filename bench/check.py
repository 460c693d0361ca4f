"""Whether a backend's output is right, by a tolerance that is derived from eager's own error."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgraph.bench.backends import Setting
from fastgraph.bench.cases import Built, in_dtype
from fastgraph.verify import error, tolerance

VALUES_AT_ONCE = 2**20  # of input, in the float64 reference: one photograph, or 1,337 digits


@dataclass(frozen=True)
class Reference:
    """The truth for one case: ``output`` in float64, and how far from it a backend may be in the setting's dtype."""

    output: Tensor
    eager_error: float
    tolerance: float


def reference(built: Built, setting: Setting) -> Reference:
    """Runs the model eagerly on ``x`` in float64, and in the setting's dtype to see eager's own error.

    The tolerance is the package's own, ``fastgraph.verify.tolerance``.
    """
    rows = max(1, VALUES_AT_ONCE // built.x[:1].numel())  # in parts: Net's feature maps are large
    exact = _in_parts(built.model, built.x, torch.float64, rows)
    output = _in_parts(built.model, built.x, setting.torch_dtype, rows)
    return Reference(exact, error(output, exact), tolerance(output, exact))


def complaint(output: Tensor, dtype: str, truth: Reference, setting: Setting) -> str | None:
    """What is wrong with ``output``, which was given in ``dtype``, or None when it is right."""
    allowed = {"float32", str(setting.torch_dtype).removeprefix("torch.")}
    if dtype not in allowed or output.shape != truth.output.shape:
        return f"gives {dtype} {list(output.shape)}, where float32 {list(truth.output.shape)} is needed"
    distance = error(output, truth.output)
    if not math.isfinite(distance):
        return "gives NaN or infinity where the reference is finite"
    if distance > truth.tolerance:
        return f"its error {distance:.1e} is over the tolerance {truth.tolerance:.1e}"
    return None


def mean_error(output: Tensor, exact: Tensor) -> float:
    """Mean distance from the float64 output."""
    return (output.double() - exact).abs().mean().item()


def accuracy(call: Callable[[Tensor], Tensor], held_out: tuple[Tensor, Tensor] | None, batch: int) -> float | None:
    """Share of the held-out digits that ``argmax`` classifies right, 0..1; None when there are no digits.

    They go through in batches of ``batch``. The last one is filled up from the start, so that a backend which compiles
    for one batch size sees no other; the fillers are not counted.
    """
    if held_out is None:
        return None
    images, labels = held_out
    filled = torch.arange(math.ceil(len(images) / batch) * batch) % len(images)
    classes = torch.cat([call(images[part]).argmax(dim=1).cpu() for part in filled.split(batch)])
    return (classes[: len(labels)] == labels).double().mean().item()


def _in_parts(model: nn.Module, x: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
    """The model's output in ``dtype``, ``rows`` samples at a time."""
    model = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
    with torch.inference_mode():
        return torch.cat([model(in_dtype(part, dtype)) for part in x.split(rows)])
