"""What the values and axes of an ONNX file are called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import onnx_ir

_AXES = {2: {1: "features"}, 3: {1: "length"}, 4: {2: "height", 3: "width"}, 5: {2: "depth", 3: "height", 4: "width"}}


def rename_values(stem: str, values: Sequence[Any]) -> None:
    """Names graph inputs or outputs ``stem``, or ``stem_0``, ``stem_1``, .. when there are several."""
    for index, value in enumerate(values):
        value.name = stem if len(values) == 1 else f"{stem}_{index}"


def rename_axes(model: Any) -> None:
    """Gives the free sizes names (``batch``) for torch's own (``s77``), in every shape of the graph."""
    names = _axis_names(model.graph.inputs)
    for value in [*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)]:
        if value.shape is None:
            continue
        renamed = list(value.shape)
        for axis, size in _free_sizes(value):  # among them "3": free when torch.export began, fixed by an operator
            text = re.sub(r"[A-Za-z_]\w*", lambda found: names.get(found.group(), found.group()), size)
            renamed[axis] = int(size) if size.isdecimal() else text
        value.shape = onnx_ir.Shape(renamed)  # torch.onnx's shape inference leaves some that may not be changed


def name_lengths(model: Any) -> None:
    """Gives the length of a Fourier transform a name where it is computed.

    onnxruntime 1.31 takes it for the length of the input otherwise, and gives two results the same memory by that.
    """
    for node in model.graph.all_nodes():
        if node.op_type == "DFT" and len(node.inputs) > 1 and node.inputs[1] is not None:
            output = node.outputs[0]
            output.shape = onnx_ir.Shape([f"{output.name}_{axis}" for axis in range(len(output.shape))])
            for user, _ in output.uses():
                for value in user.outputs:
                    if not value.is_graph_output():
                        value.shape = None  # onnxruntime finds it by itself


def _free_sizes(value: Any) -> list[tuple[int, str]]:
    sizes = enumerate(value.shape or ())
    return [(axis, str(n.value)) for axis, n in sizes if isinstance(n, onnx_ir.SymbolicDim) and n.value is not None]


def _axis_names(inputs: Sequence[Any]) -> dict[str, str]:
    """A name for every free size of the inputs.

    ``batch`` is the first size of the only input, or of several. Any other size is called by the axes behind the first
    one where it is one of them: of a mask [length, length] beside [batch, length, features] both are ``length``.
    """
    free = [(value, axis, size) for value in inputs for axis, size in _free_sizes(value) if size.isidentifier()]
    firsts = Counter(size for _, axis, size in free if axis == 0)
    names: dict[str, str] = {}
    for value, axis, size in sorted(free, key=lambda one: _rank(one[1], firsts[one[2]], len(inputs))):
        if size not in names:
            rank = _rank(axis, firsts[size], len(inputs))
            names[size] = _axis_name(value, axis, names, is_batch=rank == 0)
    return names


def _rank(axis: int, inputs_that_begin_with_it: int, inputs: int) -> int:
    """The order in which axes give names to sizes: batches, those behind the first one, other first ones."""
    if axis > 0:
        return 1
    return 0 if inputs == 1 or inputs_that_begin_with_it > 1 else 2


def _axis_name(value: Any, axis: int, names: dict[str, str], *, is_batch: bool) -> str:
    """``batch``, ``height``, .. or, where that is taken, with the input's name."""
    usual = "batch" if is_batch else _AXES.get(len(value.shape), {}).get(axis)
    if usual is None:
        return f"{value.name}_axis_{axis}"
    return usual if usual not in names.values() else f"{value.name}_{usual}"
