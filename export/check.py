"""Is the ONNX file right? Checked, run by onnxruntime, and compared with float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import onnx
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor

from fastgraph import verify as numbers
from fastgraph.capture import Captured, check_inputs
from fastgraph.export.runtime import Binding, open_session, standard_error
from fastgraph.rewrite.rule import argument

BATCHES = (1, 3)
_SWITCHES = ("train", "training", "dropout", "dropout_p")  # false or 0: the operator draws nothing
_REFUSALS: tuple[type[Exception], ...] = tuple(
    error for error in vars(ort_errors).values() if isinstance(error, type) and issubclass(error, Exception)
)
_FAILURES: tuple[type[Exception], ...] = (RuntimeError, *_REFUSALS)


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


def rows(inputs: Sequence[Any], batch: int) -> list[Any]:
    """The inputs with ``batch`` rows, the first ones; where there are not enough they come again, moved on each time.

    One moved on by a place is still real data, and another row than the one before. Of no rows come zeros.
    """
    return [_resized(value, 0, batch) if isinstance(value, Tensor) else value for value in inputs]


def _resized(tensor: Tensor, axis: int, size: int) -> Tensor:
    """``tensor`` with ``size`` places along ``axis``: its own, then again, moved on along the last axis."""
    if tensor.shape[axis] == 0:
        return tensor.new_zeros([*tensor.shape[:axis], size, *tensor.shape[axis + 1 :]])
    rounds = -(-size // tensor.shape[axis])
    moved = [tensor if i == 0 or tensor.dim() == 1 else tensor.roll(i, -1) for i in range(rounds)]
    return torch.cat(moved, axis).narrow(axis, 0, size) if rounds else tensor.narrow(axis, 0, 0)


def verify(data: bytes, captured: Captured, flat: Sequence[Any], dtype: torch.dtype | None) -> Verified:
    """Runs the file on several sizes and compares every output with the captured graph in float64.

    RuntimeError where onnxruntime does not take the file, where there is nothing to compare with (random numbers, no
    float64), or where an output is farther away than ``fastgraph.verify.tolerance`` allows for eager in ``dtype``
    (None: its own).
    """
    if drawing := _random(captured):
        raise RuntimeError(
            f"to_onnx: cannot verify: {drawing} draws random numbers; verify=False writes the file without"
        )
    running = _session(data, dtype)
    shapes, worst = [], 0.0
    for inputs in _trials(captured, list(flat), [list(value.shape) for value in running.get_inputs()]):
        eager, reference = numbers.run(captured, inputs, dtype), numbers.run(captured, inputs, torch.float64)
        if eager is None or reference is None:
            raise RuntimeError(
                "to_onnx: cannot verify: an operator of the model does not run in float64 (or the dtype asked for); "
                "verify=False writes the file without"
            )
        given = _tensors(inputs)
        outputs = _run(running, given)
        for value, output, own, exact in zip(
            running.get_outputs(), outputs, _results(eager), _results(reference), strict=True
        ):
            worst = max(worst, _compare(value.name, given, output, own, exact))
        shapes.append(tuple(given[0].shape))
    return Verified(tuple(shapes), worst)


def _random(captured: Captured) -> str | None:
    """The first operator that draws random numbers; not dropout that is switched off."""
    for node in captured.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            formal = {one.name for one in node.target._schema.arguments}
            if all(argument(node, switch) for switch in _SWITCHES if switch in formal):
                return str(node.target)
    return None


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def _results(outputs: Sequence[Any]) -> list[Tensor]:
    """The outputs as the file has them: numbers as tensors, nothing for None."""
    return [torch.as_tensor(value).cpu() for value in outputs if value is not None]


def _session(data: bytes, dtype: torch.dtype | None) -> onnxruntime.InferenceSession:
    """A session on the CPU, or on CUDA where the CPU's has no implementation in this dtype."""
    try:
        return open_session(data)[0]
    except _REFUSALS as error:
        reason = str(error).rpartition(" : ")[2]
    if torch.cuda.is_available():
        return open_session(data, "cuda")[0]
    raise RuntimeError(
        f"to_onnx: onnxruntime's CPUExecutionProvider does not take this model in {dtype or 'its dtype'}: {reason}; "
        "verify=False writes the file unverified, for a provider that does"
    )


def _run(running: onnxruntime.InferenceSession, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs; RuntimeError where onnxruntime fails on inputs of these sizes."""
    try:
        with standard_error():  # onnxruntime prints what it raises
            return Binding(running)(*(tensor.cpu() for tensor in inputs))
    except _FAILURES as error:
        reason = str(error).partition("Status Message: ")[2] or str(error)
        raise RuntimeError(
            f"to_onnx: onnxruntime fails on {_shapes(inputs)}: {' '.join(reason.split())}; nothing was written"
        ) from error


def _shapes(inputs: Sequence[Tensor]) -> str:
    return f"inputs of shape {', '.join(str(list(tensor.shape)) for tensor in inputs)}"


def _trials(captured: Captured, flat: list[Any], shapes: list[list[Any]]) -> Iterator[list[Any]]:
    """Inputs to run: the given ones, whole; other batches, where there is one; another size of every other free axis.

    ``shapes`` are the file's: a free size has a name there, the same in every input that shares it. Only what eager
    takes is a trial: made inputs may break a rule that no size tells of (an index out of its table).
    """
    axes = _free_axes(flat, shapes)
    batch = _batch(shapes)
    least = flat
    if batch is None:
        yield flat
    else:
        own = _size(flat, axes[batch])
        for size in sorted({*BATCHES, own}):
            inputs = flat if size == own else _with_size(flat, axes[batch], size)
            if size == own or _takes(captured, inputs):
                least = inputs if size == BATCHES[0] else least
                yield inputs
    for name in axes:
        if name != batch:
            size = _size(least, axes[name])
            others = (_with_size(least, axes[name], other) for other in (size + 1, size - 1) if other > 0)
            yield from islice((inputs for inputs in others if _takes(captured, inputs)), 1)


def _free_axes(flat: Sequence[Any], shapes: list[list[Any]]) -> dict[str, list[tuple[int, int]]]:
    """The free sizes by name, each with the (input, axis) that have it; sizes computed from others are left out."""
    positions = [position for position, value in enumerate(flat) if isinstance(value, Tensor)]
    axes: dict[str, list[tuple[int, int]]] = {}
    for position, shape in zip(positions, shapes, strict=True):
        for axis, size in enumerate(shape):
            if isinstance(size, str) and size.isidentifier():
                axes.setdefault(size, []).append((position, axis))
    return axes


def _batch(shapes: list[list[Any]]) -> str | None:
    """The free size that every input has as its first; None where they do not share one."""
    firsts = {shape[0] if shape else None for shape in shapes}
    first = firsts.pop() if len(firsts) == 1 else None
    return first if isinstance(first, str) and first.isidentifier() else None


def _size(flat: Sequence[Any], axes: list[tuple[int, int]]) -> int:
    position, axis = axes[0]
    return int(flat[position].shape[axis])


def _with_size(flat: Sequence[Any], axes: list[tuple[int, int]], size: int) -> list[Any]:
    """The inputs with these axes made longer or shorter."""
    made = list(flat)
    for position, axis in axes:
        made[position] = _resized(made[position], axis, size)
    return made


def fits(captured: Captured, flat: Sequence[Any]) -> bool:
    """Whether the captured graph takes these sizes."""
    try:
        check_inputs(captured, flat)
    except (RuntimeError, TypeError):
        return False
    return True


def _takes(captured: Captured, flat: Sequence[Any]) -> bool:
    """Whether the captured graph takes these sizes and computes something of these values."""
    if not fits(captured, flat):
        return False
    try:
        return numbers.run(captured, list(flat), None) is not None
    except Exception:
        return False


def _compare(name: str, inputs: Sequence[Tensor], output: Tensor, eager: Tensor, reference: Tensor) -> float:
    """The error of one output; RuntimeError where it is too large.

    A whole number is wrong where it is neither eager's nor float64's: where two values are as good as equal, each of
    the three may take another one for the larger.
    """
    place = f"output {name!r} on {_shapes(inputs)}"
    if not eager.is_floating_point():
        if not _is_either(output, eager, reference):
            raise RuntimeError(f"to_onnx: {place} differs from PyTorch's; nothing was written")
        return 0.0
    found = numbers.error(output, reference)
    allowed = max(numbers.tolerance(eager, reference), numbers.tolerance(eager.to(output.dtype), reference))
    if not found <= allowed:
        raise RuntimeError(
            f"to_onnx: {place}: error {found:.3g} against float64, allowed {allowed:.3g}; nothing was written"
        )
    return found


def _is_either(output: Tensor, eager: Tensor, reference: Tensor) -> bool:
    """Whether every value is one of the two; of different shapes, whether all are of the same one."""
    if output.shape == eager.shape == reference.shape:
        return bool(((output == eager) | (output == reference)).all())
    return torch.equal(output, eager) or torch.equal(output, reference)
