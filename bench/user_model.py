"""A user's own model as a case: ``--model package.module:callable --input-shape 1,3,224,224``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fastgraph.bench.cases import Built, Case
from fastgraph.export.user_model import UsageError, load, random_input


def user_cases(target: str, input_shape: Sequence[int], batches: Sequence[int]) -> list[Case]:
    """The cases of the model that ``target``, "module:callable", makes when it is called without arguments.

    Raises:
        UsageError: it cannot be imported, gives no module, or that module gives no single tensor.
    """
    build = partial(build_user, target, tuple(input_shape))
    check_output(target, build(1))
    return [Case(target.partition(":")[2], batch, build) for batch in batches]


def check_output(target: str, built: Built) -> None:
    """UsageError unless the model gives one floating tensor with the batch in front."""
    try:
        with torch.inference_mode():
            output = built.model(built.x)
    except Exception as error:
        shape = list(built.x.shape)
        raise UsageError(f"{target} cannot be called on {shape}: {type(error).__name__}: {error}") from error
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() == 0:
        raise UsageError(f"{target} must give one floating tensor with a batch axis; got {type(output).__name__}")


def build_user(target: str, input_shape: tuple[int, ...], batch: int) -> Built:
    """The model in eval mode, and seeded normally distributed input ``[batch, *input_shape[1:]]``."""
    return Built(load(target), random_input((batch, *input_shape[1:])))
