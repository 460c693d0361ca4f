"""Is the ONNX file right? Checked, run by onnxruntime, and compared with float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor

from fastgraph import verify as numbers
from fastgraph.captured import Captured
from fastgraph.export.captures import Attempt, Model, SizesError, refusal
from fastgraph.export.runtime import Binding, open_session, standard_error
from fastgraph.export.trials import trials
from fastgraph.rewrite.rule import argument

_SWITCHES = ("train", "training", "dropout", "dropout_p")  # false or 0: the operator draws nothing
REFUSALS: tuple[type[Exception], ...] = tuple(
    error for error in vars(ort_errors).values() if isinstance(error, type) and issubclass(error, Exception)
)
_FAILURES: tuple[type[Exception], ...] = (RuntimeError, *REFUSALS)


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


def verify(data: bytes, model: Model, attempt: Attempt, dtype: torch.dtype | None) -> Verified:
    """Runs the file on several sizes of every free axis and compares every output with the model's in float64.

    RuntimeError where onnxruntime does not take the file, where there is nothing to compare with (random numbers, no
    float64), or where an output is farther away than ``fastgraph.verify.tolerance`` allows for eager in ``dtype``
    (None: its own).
    """
    if drawing := _random(attempt.captured):
        raise RuntimeError(
            f"to_onnx: cannot verify: {drawing} draws random numbers; verify=False writes the file without"
        )
    running = _session(data, dtype)
    shapes, worst = [], 0.0
    declared = [list(value.shape) for value in running.get_inputs()]
    for inputs, graph in trials(lambda flat: model.graph_for(attempt.captured, flat), attempt.flat, declared):
        with _of_one_class(attempt, graph, inputs):
            worst = max(worst, _largest_error(running, graph, inputs, dtype))
        shapes.append(tuple(_tensors(inputs)[0].shape))
    return Verified(tuple(shapes), worst)


@contextmanager
def _of_one_class(attempt: Attempt, graph: Captured, inputs: Sequence[Tensor]) -> Iterator[None]:
    """What fails on inputs that the graph in the file is not for fails for that reason."""
    try:
        yield
    except RuntimeError as error:
        reason = refusal(attempt.captured, inputs)
        if graph is attempt.captured or reason is None:
            raise
        shapes = zip(attempt.flat, inputs, strict=True)
        raise SizesError(
            f"to_onnx: one file cannot hold for all sizes that the model takes: {reason}, and the model computes "
            "something else there; an example of that size gives a file of its own; nothing was written",
            [
                (i, axis)
                for i, (own, x) in enumerate(shapes)
                for axis in range(x.dim())
                if own.shape[axis] != x.shape[axis]
            ],
        ) from error


def _largest_error(
    running: onnxruntime.InferenceSession, graph: Captured, inputs: Sequence[Tensor], dtype: torch.dtype | None
) -> float:
    """Of all outputs on these inputs; RuntimeError where it is too large."""
    eager, reference = numbers.run(graph, list(inputs), dtype), numbers.run(graph, list(inputs), torch.float64)
    if eager is None or reference is None:
        raise RuntimeError(
            "to_onnx: cannot verify: an operator of the model does not run in float64 (or the dtype asked for); "
            "verify=False writes the file without"
        )
    outputs = _run(running, inputs)
    compared = zip(running.get_outputs(), outputs, _results(eager), _results(reference), strict=True)
    return max(_compare(value.name, inputs, output, own, exact) for value, output, own, exact in compared)


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
    except REFUSALS as error:
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
