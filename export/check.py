"""Is the ONNX file right? Checked, run by onnxruntime, and compared with float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor

from fastgraph import verify as numbers
from fastgraph.capture import Captured, check_inputs
from fastgraph.export.runtime import Binding, session, standard_error

BATCHES = (1, 3)
_REFUSALS = (ort_errors.NotImplemented, ort_errors.InvalidGraph, ort_errors.Fail, ort_errors.InvalidArgument)


@dataclass(frozen=True)
class Verified:
    """Which inputs were run, as (shape of the first input, ..), and the largest error against float64 among them."""

    shapes: tuple[tuple[int, ...], ...]
    error: float

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        return f"verified on {shapes}: largest error against float64 {self.error:.2g}"


def check(data: bytes) -> None:
    """``onnx.checker`` in full, with strict shape inference; RuntimeError where it finds something."""
    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RuntimeError(f"to_onnx: the file does not pass onnx.checker: {error}") from error


def rows(inputs: Sequence[Tensor], batch: int) -> list[Tensor]:
    """The inputs with ``batch`` rows, the first ones; where there are not enough they come again, moved on each time.

    One moved on by a place is still real data, and another row than the one before. Of no rows come zeros.
    """
    return [_resized(tensor, 0, batch) for tensor in inputs]


def _resized(tensor: Tensor, axis: int, size: int) -> Tensor:
    """``tensor`` with ``size`` places along ``axis``: its own, then again, moved on along the last axis."""
    if tensor.shape[axis] == 0:
        return tensor.new_zeros([*tensor.shape[:axis], size, *tensor.shape[axis + 1 :]])
    rounds = -(-size // tensor.shape[axis])
    moved = [tensor if i == 0 or tensor.dim() == 1 else tensor.roll(i, -1) for i in range(rounds)]
    return torch.cat(moved, axis).narrow(axis, 0, size) if rounds else tensor.narrow(axis, 0, 0)


def verify(data: bytes, captured: Captured, flat: Sequence[Tensor], dtype: torch.dtype | None) -> Verified:
    """Runs the file on several sizes and compares every output with the captured graph in float64.

    RuntimeError where onnxruntime does not take the file, where float64 cannot be had, or where an output is farther
    away than ``fastgraph.verify.tolerance`` allows for eager in ``dtype`` (None: its own).
    """
    running = _session(data, dtype)
    shapes, worst = [], 0.0
    for inputs in _trials(captured, list(flat)):
        eager, reference = numbers.run(captured, inputs, dtype), numbers.run(captured, inputs, torch.float64)
        if eager is None or reference is None:
            raise RuntimeError(
                "to_onnx: cannot verify: an operator of the model does not run in float64 (or the dtype asked for); "
                "verify=False writes the file without"
            )
        outputs = _run(running, inputs)
        for value, output, own, exact in zip(running.get_outputs(), outputs, eager, reference, strict=True):
            worst = max(worst, _compare(value.name, inputs, output, own.cpu(), exact.cpu()))
        shapes.append(tuple(inputs[0].shape))
    return Verified(tuple(shapes), worst)


def _session(data: bytes, dtype: torch.dtype | None) -> onnxruntime.InferenceSession:
    """A session on the CPU, or on CUDA where the CPU's has no implementation in this dtype."""
    try:
        return session(data)
    except _REFUSALS as error:
        reason = str(error).rpartition(" : ")[2]
    if torch.cuda.is_available():
        return session(data, "cuda")
    raise RuntimeError(
        f"to_onnx: onnxruntime's CPUExecutionProvider does not take this model in {dtype or 'its dtype'}: {reason}; "
        "verify=False writes the file unverified, for a provider that does"
    )


def _run(running: onnxruntime.InferenceSession, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs; RuntimeError where onnxruntime fails on inputs of these sizes."""
    try:
        with standard_error():  # onnxruntime prints what it raises
            return Binding(running)(*(tensor.cpu() for tensor in inputs))
    except (RuntimeError, *_REFUSALS) as error:
        reason = str(error).partition("Status Message: ")[2] or str(error)
        raise RuntimeError(
            f"to_onnx: onnxruntime fails on {_shapes(inputs)}: {' '.join(reason.split())}; nothing was written"
        ) from error


def _shapes(inputs: Sequence[Tensor]) -> str:
    return f"inputs of shape {', '.join(str(list(tensor.shape)) for tensor in inputs)}"


def _trials(captured: Captured, flat: list[Tensor]) -> Iterator[list[Tensor]]:
    """Inputs of every size to run: batches, then another size of every other axis that is free."""
    for batch in sorted({*BATCHES, flat[0].shape[0]}):
        inputs = rows(flat, batch)
        if batch == flat[0].shape[0] or _fits(captured, inputs):
            yield inputs
    one = rows(flat, 1)
    for position, tensor in enumerate(one):
        for axis in range(1, tensor.dim()):
            for size in (tensor.shape[axis] + 1, tensor.shape[axis] - 1):
                other = [_resized(t, axis, size) if i == position else t for i, t in enumerate(one)]
                if size > 0 and _fits(captured, other):
                    yield other
                    break


def _fits(captured: Captured, flat: Sequence[Any]) -> bool:
    """Whether the captured graph takes these sizes."""
    try:
        check_inputs(captured, flat)
    except RuntimeError:
        return False
    return True


def _compare(name: str, inputs: Sequence[Tensor], output: Tensor, eager: Any, reference: Any) -> float:
    """The error of one output; RuntimeError where it is too large."""
    place = f"output {name!r} on {_shapes(inputs)}"
    if not eager.is_floating_point():
        if not torch.equal(output, eager):
            raise RuntimeError(f"to_onnx: {place} differs from PyTorch's; nothing was written")
        return 0.0
    found = numbers.error(output, reference)
    allowed = max(numbers.tolerance(eager, reference), numbers.tolerance(eager.to(output.dtype), reference))
    if not found <= allowed:
        raise RuntimeError(
            f"to_onnx: {place}: error {found:.3g} against float64, allowed {allowed:.3g}; nothing was written"
        )
    return found
