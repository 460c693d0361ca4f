"""Whether a backend's output is right, by a tolerance that is derived from eager's own error."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.cases import Case
from fastgraph.verify import error, tolerance

VALUES_AT_ONCE = 2**20  # of input, in the float64 reference: one photograph, or 1,337 digits


@dataclass(frozen=True)
class Reference:
    """The truth for one case: ``output`` in float64, and how far from it a backend may be."""

    output: Tensor
    eager_error: float
    tolerance: float


def reference(model: nn.Module, x: Tensor) -> Reference:
    """Runs ``model`` eagerly on ``x`` in float64, and as it is to see eager's own error.

    The tolerance is the package's own, ``fastgraph.verify.tolerance``.
    """
    exact_model = copy.deepcopy(model).double()
    rows = max(1, VALUES_AT_ONCE // x[:1].numel())
    exact = torch.cat([exact_model(part.double()) for part in x.split(rows)])  # in parts: Net's feature maps are large
    output = model(x)
    return Reference(exact, error(output, exact), tolerance(output, exact))


def complaint(output: Tensor, truth: Reference) -> str | None:
    """What is wrong with ``output``, or None when it is right."""
    if output.dtype != torch.float32 or output.shape != truth.output.shape:
        return f"gives {output.dtype} {list(output.shape)}, where torch.float32 {list(truth.output.shape)} is needed"
    found = error(output, truth.output)
    if not math.isfinite(found):
        return "gives NaN or infinity where the reference is finite"
    if found > truth.tolerance:
        return f"its error {found:.1e} is over the tolerance {truth.tolerance:.1e}"
    return None


def accuracy(call: Callable[[Tensor], Tensor], case: Case) -> float | None:
    """Share of the held-out digits that ``argmax`` classifies right, 0..1; None when the case has no digits.

    They go through in batches of the case's size. The last one is filled up from the start, so that a backend which
    compiles for one batch size sees no other; the fillers are not counted.
    """
    if case.held_out is None:
        return None
    images, labels = case.held_out
    filled = torch.arange(math.ceil(len(images) / case.batch) * case.batch) % len(images)
    classes = torch.cat([call(images[part]).argmax(dim=1) for part in filled.split(case.batch)])
    return (classes[: len(labels)] == labels).double().mean().item()
