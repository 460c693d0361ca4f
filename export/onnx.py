"""A PyTorch model as one ONNX file in standard operators, verified before it is written."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import fastgraph
from fastgraph.extras import require

require("onnx", "onnx_ir", "onnxscript", "onnxruntime", by="export.to_onnx")

from onnx_ir.passes import PassError

from fastgraph.capture import free_ones
from fastgraph.captured import Captured
from fastgraph.export import check, files
from fastgraph.export.captures import Attempt, Model, SizesError, check_guards, guards
from fastgraph.export.compare import is_faster
from fastgraph.export.names import name_lengths, rename_axes, rename_values
from fastgraph.export.row_blocks import in_row_blocks
from fastgraph.export.standard import drop_state, in_standard_operators
from fastgraph.export.translations import translations

OPSETS = range(18, 26)
"""What torch.onnx writes by itself and onnxruntime reads: torch 2.14, onnxruntime 1.31."""
OPSET = 20
BFLOAT16_OPSET = 22  # the first in which Conv and MaxPool take bfloat16
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
T = TypeVar("T")


def to_onnx(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    path: str | Path,
    *,
    example_kwargs: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    opset: int | None = None,
    verify: bool = True,
    overwrite: bool = False,
    name: str | None = None,
    preprocessing: str | None = None,
    labels: Sequence[str] | None = None,
    row_blocks: bool | None = None,
) -> check.Verified | None:
    """Writes ``model`` as one ONNX file that takes any batch.

    A plain module is written as it is. A module from ``fastgraph.optimize`` is written as its simplified graph, in
    standard operators that every runtime has: batch-norm folded, no dropout, no ReLU without effect, ReLU after the
    pool. A convolution on a large image whose pooled rows go through linear layers (``Net``) is a ``Loop`` over blocks
    of rows, which keeps what is between them in the CPU's cache (``export.row_blocks``), where that is faster here.

    Every axis that the model and torch.onnx's translation of it leave free is dynamic, and holds for every size that
    the model takes; any other has the example's size in the file, and onnxruntime takes no other. Where the model
    computes something else for a batch of 1 than for more, an example of batch 1 gives a file for that batch alone, and
    any other is refused. The first one of the only input, or of several that share it, is
    named ``batch``; others ``height`` and ``width`` of images, ``length`` of sequences, and so on. Every tensor among
    the arguments is an input and every one among the results an output, in order; they are named ``input`` and
    ``output``, numbered (``input_0``, ``input_1``) where there are several. Other values among the arguments are burnt
    in; among the results numbers become tensors and None is left out. Weights lie in the file itself, and so do the
    producer and its version, the model's name, the arguments' names, where in the result the outputs are (if they are
    parts of one), and what is given of preprocessing and labels (``session.get_modelmeta().custom_metadata_map``).

    Before anything is written, the file is checked by ``onnx.checker``, with shape inference, and run by onnxruntime on
    the example, and where eager takes them on batches of 1 and 3, on 1 and another size of every other free axis, and
    on all of them in other sizes at once, each compared with float64 by the tolerance of ``fastgraph.verify``. Where
    the graph in the file is not for such sizes, the model is captured anew for them. Those inputs are made of the
    example's: give real data.

    Args:
        model: a module in eval mode that ``torch.export`` takes, or the result of ``fastgraph.optimize``.
        example_inputs: the arguments of one call by position, of any batch.
        path: the file to write. It appears when it is whole.
        example_kwargs: the arguments by name.
        dtype: computes in float16, bfloat16 or float32; inputs and outputs keep their dtype. By default the module's.
        opset: the version of the ONNX operators, by default 20 (22 for bfloat16).
        verify: False writes without the runs of onnxruntime.
        overwrite: an existing file is replaced.
        name: of the model, by default its class's.
        preprocessing: how an input is made of the data, in words.
        labels: of the classes, in order.
        row_blocks: whether such a loop is written. None, the default, measures where there could be one: onnxruntime
            runs the file with it and without on the example, on this machine's CPU with as many threads as torch, in
            turn for about a second, and the loop is written if it was faster in three rounds of four. True writes it in
            any case; False never: for a GPU, which has to be fed large operators.

    Returns:
        What was verified; None without verification.

    Raises:
        TypeError: ``model`` is no module, ``example_inputs`` no tuple, or an input or output is nothing that ONNX has.
        ValueError: there is no tensor among the arguments, ``model`` is in training mode, or there is no such ``dtype``
            or ``opset``.
        FileExistsError, OSError: ``path`` exists and ``overwrite`` is false, or cannot be written.
        RuntimeError: the model cannot be exported (the message names the operator, or the buffer it keeps state in),
            onnxruntime does not take it (a dtype, an operator), it cannot be verified, no file can hold for all sizes
            of an axis (the message names it), or an output is not close enough to float64; the message says which
            output and batch and how far.
    """
    args, kwargs = _check(model, example_inputs, example_kwargs)
    optimized = model if isinstance(model, fastgraph.OptimizedModule) else None
    original = model if optimized is None or optimized._graphs.is_loaded else optimized._original
    dtype = dtype or (optimized.dtype if optimized is not None else None)
    opset = _opset(opset, dtype, {tensor.dtype for tensor in (*_tensors((args, kwargs)), *model.parameters())})
    target = files.check_target(path, overwrite)
    about = {"preprocessing": preprocessing, "labels": None if labels is None else json.dumps(list(labels))}
    with _quiet():
        whole = Model(original, args, kwargs)

        def write(attempt: Attempt) -> tuple[bytes, check.Verified | None]:
            simplified = in_standard_operators(attempt.captured, dtype, simplify=optimized is not None)
            program = _program(simplified, attempt, opset, type(original).__name__)
            _finish(program.model, name or type(original).__name__, {**about, **_places(attempt.captured)})
            data = _serialized(program)
            if optimized is not None and row_blocks is not False:
                data = _with_row_blocks(program, data, attempt.flat, measured=row_blocks is None)
            check.check(data)
            return data, check.verify(data, whole, attempt, dtype) if verify else None

        data, verified = _first(write, whole.attempts(verified=verify))
    files.write(target, data)
    return verified


def _check(model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
    """The example's arguments. Raises what ``to_onnx`` says it raises before anything is traced."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_onnx: model must be a torch.nn.Module; got {type(model).__name__}")
    if not isinstance(inputs, tuple):
        raise TypeError(f"to_onnx: example_inputs must be a tuple of the arguments; got {type(inputs).__name__}")
    if named is not None and not isinstance(named, dict):
        raise TypeError(f"to_onnx: example_kwargs must be a dict of the named arguments; got {type(named).__name__}")
    if not _tensors((inputs, named)):
        raise ValueError(f"to_onnx: example_inputs must have a tensor, at least one; got {inputs!r}")
    if model.training and not isinstance(model, fastgraph.OptimizedModule):
        raise ValueError("to_onnx: model must be in eval mode (dropout and batch-norm differ); call model.eval() first")
    return inputs, named or {}


def _tensors(values: Any) -> list[Tensor]:
    """The tensors in a structure."""
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]


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


def _first(write: Callable[[Attempt], T], attempts: Iterable[Attempt]) -> T:
    """What comes of the first attempt that does not fail; the last one's error."""
    failure: RuntimeError | None = None
    for attempt in attempts:
        try:
            return _with_fewer_axes(write, attempt)
        except RuntimeError as error:
            failure = error
    assert failure is not None  # there is one attempt at least
    raise failure


def _with_fewer_axes(write: Callable[[Attempt], T], attempt: Attempt) -> T:
    """What comes of the attempt, axes that no file can have free fixed."""
    try:
        return write(attempt)
    except SizesError as error:
        if error.axes <= attempt.fixed:
            raise
        return _with_fewer_axes(write, attempt.fixing(error.axes))


def _traced(graph_module: fx.GraphModule, attempt: Attempt) -> torch.export.ExportedProgram:
    """The graph as torch.onnx takes it, with every size free that the captured graph leaves free."""
    shapes, tensors = tuple(attempt.free_axes()), tuple(attempt.traced)
    try:
        with free_ones():
            return torch.export.export(graph_module, tensors, dynamic_shapes=shapes, strict=False)
    except Exception:  # it broadcasts along a size of 1, which then is fixed
        return torch.export.export(graph_module, tensors, dynamic_shapes=shapes, strict=False)


def _program(graph_module: fx.GraphModule, attempt: Attempt, opset: int, name: str) -> torch.onnx.ONNXProgram:
    """torch.onnx's translation; RuntimeError, naming the operator, where it has none, or one for some sizes only."""
    settings: dict[str, Any] = {"opset_version": opset, "custom_translation_table": translations()}
    try:
        program = _traced(graph_module, attempt)
        before = len(guards(program))
        try:
            made = torch.onnx.export(program, dynamo=True, verbose=False, **settings)
        except PassError:  # its optimizer fails on some graphs that are right (a chunk of sizes not known)
            made = torch.onnx.export(program, dynamo=True, verbose=False, optimize=False, **settings)
    except Exception as error:  # not only its own: what the translations and the optimizer raise comes through
        raise RuntimeError(f"to_onnx: torch.onnx cannot export {name}: {_cause(error)}") from error
    assert made is not None  # torch.onnx.export returns None only without dynamo
    check_guards(program, attempt.captured, guards(program)[before:], name)
    drop_state(made)
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is said by torch.export, torch.onnx and onnxscript, which log and print the errors that they raise."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _cause(error: BaseException) -> str:
    """The operator, where one is named, and the first cause of an exporter's error, wrapped in advice on reports."""
    texts = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        texts.append(str(error))
    operators = [found.group(1) for text in texts if (found := re.search(r"target=(?:torch\.ops\.)?([\w.]+)\]", text))]
    reason = " ".join((texts[-1].strip().splitlines() or ["no message"])[0].split())
    return f"{operators[-1] + ': ' if operators else ''}{type(error).__name__}: {reason}"


def _places(captured: Captured) -> dict[str, str]:
    """Which argument every input of the file is, and which part of the result every output, where it has parts."""
    names = [str(node.target) for node in captured.placeholders]
    values = captured.graph.output_node().args[0]
    result = pytree.tree_unflatten(list(range(len(values))), captured.out_spec)  # type: ignore[arg-type]
    places, _ = pytree.tree_flatten_with_path(result)
    kept = [pytree.keystr(path) for path, index in places if values[index] is not None]  # type: ignore[index]
    return {"inputs": json.dumps(names)} | ({"outputs": json.dumps(kept)} if any(kept) else {})


def _finish(model: Any, name: str, about: Mapping[str, str | None]) -> None:
    """Names inputs, outputs and axes, and says what the file is."""
    rename_values("input", model.graph.inputs)
    rename_values("output", model.graph.outputs)
    rename_axes(model)
    name_lengths(model)
    for node in model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # file paths of this machine
    model.producer_name, model.producer_version = "fastgraph", fastgraph.__version__
    model.graph.name = name
    metadata = {"name": name, "torch": torch.__version__, **about}
    model.metadata_props.update({key: value for key, value in metadata.items() if value is not None})


def _with_row_blocks(
    program: torch.onnx.ONNXProgram, data: bytes, inputs: Sequence[Tensor], *, measured: bool
) -> bytes:
    """The file with loops over blocks of rows, if it can have any; ``data``, the one without, where that is faster."""
    names = [str(value.name) for value in program.model.graph.inputs]
    if not in_row_blocks(program.model, dict(zip(names, (tensor.shape for tensor in inputs), strict=True))):
        return data
    looped = _serialized(program)
    try:
        return looped if not measured or is_faster(looped, data, inputs) else data
    except check.REFUSALS:  # onnxruntime cannot run it here: there is nothing to measure
        return data


def _serialized(program: torch.onnx.ONNXProgram) -> bytes:
    """The file's contents; RuntimeError where they are more than one file may have."""
    try:
        return bytes(program.model_proto.SerializeToString())
    except Exception as error:
        raise RuntimeError(f"to_onnx: the model does not fit in one ONNX file, 2 GB: {error}") from error
