"""A PyTorch model as one ONNX file in standard operators, verified before it is written."""

from __future__ import annotations

import json
import logging
import operator
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import fastgraph
from fastgraph.extras import require

require("onnx", "onnx_ir", "onnxscript", "onnxruntime", by="export.to_onnx")

from fastgraph import precision
from fastgraph.capture import Captured, capture, flatten_inputs
from fastgraph.capture import export as torch_export
from fastgraph.direct import constant_nodes
from fastgraph.export import check, files
from fastgraph.export.row_blocks import in_row_blocks
from fastgraph.rewrite import SIMPLIFICATIONS, rewrite

OPSETS = range(18, 26)
"""What torch.onnx writes by itself and onnxruntime reads: torch 2.14, onnxruntime 1.31."""
OPSET = 20
BFLOAT16_OPSET = 22  # the first in which Conv and MaxPool take bfloat16
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_AXES = {2: {1: "features"}, 3: {1: "length"}, 4: {2: "height", 3: "width"}, 5: {2: "depth", 3: "height", 4: "width"}}


def to_onnx(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    opset: int | None = None,
    verify: bool = True,
    overwrite: bool = False,
    name: str | None = None,
    preprocessing: str | None = None,
    labels: Sequence[str] | None = None,
    row_blocks: bool = True,
) -> check.Verified | None:
    """Writes ``model`` as one ONNX file that takes any batch.

    A plain module is written as it is. A module from ``fastgraph.optimize`` is written as its simplified graph, in
    standard operators that every runtime has: batch-norm folded, no dropout, no ReLU without effect, ReLU after the
    pool. A convolution on a large image whose pooled rows go through linear layers (``Net``) is a ``Loop`` over blocks
    of rows, which keeps what is between them in the CPU's cache (``export.row_blocks``).

    The first axis of every input is dynamic and named ``batch``; so is every other axis that the model leaves free
    (``height`` and ``width`` of images, ``length`` of sequences). The inputs are named ``input`` and the outputs
    ``output``, numbered (``input_0``, ``input_1``) where there are several. Weights lie in the file itself, and so do
    the producer and its version, the model's name, and what is given of preprocessing and labels
    (``session.get_modelmeta().custom_metadata_map``).

    Before anything is written, the file is checked by ``onnx.checker``, with shape inference, and run by onnxruntime on
    batches of 1, 3 and the example's size, and on another size of every other free axis, each compared with float64 by
    the tolerance of ``fastgraph.verify``. The batches are made of the example's rows: give real data.

    Args:
        model: a module in eval mode that ``torch.export`` takes, or the result of ``fastgraph.optimize``.
        example_inputs: the inputs of one call, each ``[B, ...]``, any ``B``.
        path: the file to write. It appears when it is whole.
        dtype: computes in float16, bfloat16 or float32; inputs and outputs keep their dtype. By default the module's.
        opset: the version of the ONNX operators, by default 20 (22 for bfloat16).
        verify: False writes without the runs of onnxruntime.
        overwrite: an existing file is replaced.
        name: of the model, by default its class's.
        preprocessing: how an input is made of the data, in words.
        labels: of the classes, in order.
        row_blocks: False writes no such loop: for a GPU, which has to be fed large operators.

    Returns:
        What was verified; None without verification.

    Raises:
        TypeError: ``model`` is no module, or ``example_inputs`` not a tuple of tensors.
        ValueError: ``example_inputs`` is empty or has a tensor without axes, ``model`` is in training mode, or there is
            no such ``dtype`` or ``opset``.
        FileExistsError, OSError: ``path`` exists and ``overwrite`` is false, or cannot be written.
        RuntimeError: the model cannot be exported, onnxruntime does not take it (a dtype, an operator), or an output is
            not close enough to float64; the message says which output and batch and how far.
    """
    _check(model, example_inputs)
    optimized = model if isinstance(model, fastgraph.OptimizedModule) else None
    dtype = dtype or (optimized.dtype if optimized is not None else None)
    opset = _opset(opset, dtype, {tensor.dtype for tensor in (*example_inputs, *model.parameters())})
    target = files.check_target(path, overwrite)
    captured = optimized.captured if optimized is not None else capture(model, tuple(check.rows(example_inputs, 2)))
    flat = flatten_inputs(captured, example_inputs, {})
    if flat[0].shape[0] == 0:
        flat = check.rows(flat, 2)
    simplified = _in_standard_operators(captured, dtype, simplify=optimized is not None)
    program = _program(simplified, check.rows(flat, 2), opset, model)
    _finish(program.model, name or type(model).__name__, preprocessing, labels)
    if optimized is not None and row_blocks:
        names = [str(value.name) for value in program.model.graph.inputs]
        in_row_blocks(program.model, dict(zip(names, (tensor.shape for tensor in flat), strict=True)))
    data = program.model_proto.SerializeToString()
    check.check(data)
    verified = check.verify(data, captured, flat, dtype) if verify else None
    files.write(target, data)
    return verified


def _check(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
    """Raises what ``to_onnx`` says it raises before anything is traced."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_onnx: model must be a torch.nn.Module; got {type(model).__name__}")
    if not isinstance(example_inputs, tuple) or not all(isinstance(tensor, Tensor) for tensor in example_inputs):
        raise TypeError(f"to_onnx: example_inputs must be a tuple of tensors; got {type(example_inputs).__name__}")
    if not example_inputs or any(tensor.dim() == 0 for tensor in example_inputs):
        shapes = [tuple(tensor.shape) for tensor in example_inputs]
        raise ValueError(
            f"to_onnx: example_inputs must be tensors with a batch axis, at least one; got shapes {shapes}"
        )
    if model.training and not isinstance(model, fastgraph.OptimizedModule):
        raise ValueError("to_onnx: model must be in eval mode (dropout and batch-norm differ); call model.eval() first")


def _opset(opset: int | None, dtype: torch.dtype | None, own: set[torch.dtype]) -> int:
    """The opset to write; ValueError where there is no such opset, or dtype. ``own``: the model's and inputs'."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"to_onnx: dtype must be one of {', '.join(map(str, DTYPES))}; got {dtype}")
    least = BFLOAT16_OPSET if torch.bfloat16 in {dtype, *own} else OPSETS[0]
    if opset is None:
        return max(OPSET, least)
    if opset not in OPSETS or opset < least:
        what = f" for {torch.bfloat16}" if least > OPSETS[0] else ""
        raise ValueError(f"to_onnx: opset must be {least} to {OPSETS[-1]}{what}; got {opset}")
    return opset


def _in_standard_operators(captured: Captured, dtype: torch.dtype | None, *, simplify: bool) -> fx.GraphModule:
    """The captured graph in ATen operators, simplified or not, in ``dtype``, with its constants computed."""
    graph_module = rewrite(captured.graph_module, SIMPLIFICATIONS if simplify else ()).graph_module
    if dtype is not None:
        precision.cast(graph_module, dtype)
    _fold_constants(graph_module)
    return graph_module.eval()


def _fold_constants(graph_module: fx.GraphModule) -> None:
    """What depends on parameters alone (a folded batch-norm, a cast) becomes a buffer of the module, in place."""
    graph = graph_module.graph
    constants = constant_nodes(graph)
    values: dict[fx.Node, Any] = {}
    for node in [node for node in graph.nodes if node in constants]:
        if node.op == "get_attr":
            values[node] = operator.attrgetter(str(node.target))(graph_module)
            continue
        assert callable(node.target)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
        with torch.no_grad():
            values[node] = node.target(*args, **kwargs)
        if any(user not in constants for user in node.users):
            graph_module.register_buffer(f"folded_{node.name}", values[node])
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(f"folded_{node.name}"), lambda user: user not in constants)
    graph.eliminate_dead_code()
    graph_module.recompile()


def _program(graph_module: fx.GraphModule, flat: list[Tensor], opset: int, model: nn.Module) -> torch.onnx.ONNXProgram:
    """torch.onnx's translation; RuntimeError, naming the operator, where it has none."""
    program = torch_export(graph_module, tuple(flat))
    with _quiet():
        try:
            made = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=opset)
        except torch.onnx.OnnxExporterError as error:
            raise RuntimeError(f"to_onnx: torch.onnx cannot export {type(model).__name__}: {_cause(error)}") from error
    assert made is not None  # torch.onnx.export returns None only without dynamo
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is said about the exporter's own use of torch, nor by its logger, which repeats its errors."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        logger.setLevel(before)


def _cause(error: BaseException) -> str:
    """The first cause of an exporter's error, which wraps it in instructions for a report."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _finish(model: Any, name: str, preprocessing: str | None, labels: Sequence[str] | None) -> None:
    """Names inputs, outputs and axes, and says what the file is."""
    _rename("input", model.graph.inputs)
    _rename("output", model.graph.outputs)
    _rename_axes(model)
    for node in model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # file paths of this machine
    model.producer_name, model.producer_version = "fastgraph", fastgraph.__version__
    model.graph.name = name
    about = {"name": name, "torch": torch.__version__, "preprocessing": preprocessing}
    model.metadata_props.update({key: value for key, value in about.items() if value is not None})
    if labels is not None:
        model.metadata_props["labels"] = json.dumps(list(labels))


def _rename(stem: str, values: Sequence) -> None:
    """Names graph inputs or outputs ``stem``, or ``stem_0``, ``stem_1``, .. when there are several."""
    for index, value in enumerate(values):
        value.name = stem if len(values) == 1 else f"{stem}_{index}"


def _rename_axes(model: Any) -> None:
    """Gives the free sizes names (``batch``) for torch's own (``s77``), in every shape of the graph."""
    import onnx_ir

    def free_sizes(value: Any) -> list[tuple[int, str]]:
        sizes = enumerate(value.shape or ())
        return [(axis, str(n.value)) for axis, n in sizes if isinstance(n, onnx_ir.SymbolicDim) and n.value is not None]

    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, size in free_sizes(value):
            if size.isidentifier() and size not in names:
                names[size] = _axis_name(value, axis, names)
    for value in [*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)]:
        for axis, size in free_sizes(value):  # among them "3": free when torch.export began, fixed by an operator
            renamed = re.sub(r"[A-Za-z_]\w*", lambda found: names.get(found.group(), found.group()), size)
            value.shape[axis] = int(size) if size.isdecimal() else renamed


def _axis_name(value: Any, axis: int, names: dict[str, str]) -> str:
    """``batch``, ``height``, .. or, where that is taken, with the input's name."""
    usual = "batch" if axis == 0 else _AXES.get(len(value.shape), {}).get(axis, f"{value.name}_axis_{axis}")
    return usual if usual not in names.values() else f"{value.name}_{usual}"
