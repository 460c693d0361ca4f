"""A captured graph as torch.onnx can write it: ATen operators, tensors in and out, nothing kept between calls."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from fastgraph import precision
from fastgraph.captured import Captured
from fastgraph.constants import constant_nodes
from fastgraph.rewrite import SIMPLIFICATIONS, rewrite
from fastgraph.rewrite.rule import is_mutation

NO_STATE = "an ONNX file keeps nothing from call to call; take the state as an input and return it as an output"
_REAL = "torch.view_as_real makes an axis of both parts"


def in_standard_operators(captured: Captured, dtype: torch.dtype | None, *, simplify: bool) -> fx.GraphModule:
    """The captured graph in ATen operators, simplified or not, in ``dtype``, with its constants computed.

    TypeError, naming the input or output, for what ONNX has not: complex numbers, text.
    """
    graph_module = rewrite(captured.graph_module, SIMPLIFICATIONS if simplify else ()).graph_module
    _check_inputs(graph_module.graph)
    _tensor_outputs(graph_module)
    for node in list(graph_module.graph.nodes):
        if node.target is torch._C._set_grad_enabled:  # ONNX has no gradients
            graph_module.graph.erase_node(node)
    if dtype is not None:
        precision.cast(graph_module, dtype)
    if not any(is_mutation(node) for node in graph_module.graph.nodes):
        _fold_constants(graph_module)
    graph_module.recompile()
    return graph_module.eval()


def _check_inputs(graph: fx.Graph) -> None:
    """TypeError for complex tensors."""
    for node in graph.find_nodes(op="placeholder"):
        dtype = node.meta["val"].dtype
        if dtype.is_complex:
            raise TypeError(f"to_onnx: input {node.name!r} is {dtype}: ONNX has no complex numbers; {_REAL}")


def _tensor_outputs(graph_module: fx.GraphModule) -> None:
    """Numbers among the outputs become tensors, None goes. TypeError for any other value, and for complex tensors."""
    output = graph_module.graph.output_node()
    kept = []
    with graph_module.graph.inserting_before(output):
        for index, value in enumerate(output.args[0]):  # type: ignore[arg-type]
            if isinstance(value, bool | int | float):
                graph_module.register_buffer(f"output_value_{index}", _number(value))
                value = graph_module.graph.get_attr(f"output_value_{index}")
            elif value is not None:
                _check_output(index, value)
            if value is not None:
                kept.append(value)
    if not kept:
        raise TypeError("to_onnx: model returns no tensor; an ONNX file has at least one output")
    output.args = (tuple(kept),)


def _number(value: bool | int | float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def _check_output(index: int, value: Any) -> None:
    if not isinstance(value, fx.Node):
        raise TypeError(f"to_onnx: output {index} is {value!r} ({type(value).__name__}): an ONNX output is a tensor")
    tensor = value.meta.get("val")
    if isinstance(tensor, Tensor) and tensor.is_complex():
        raise TypeError(f"to_onnx: output {index} is {tensor.dtype}: ONNX has no complex numbers; {_REAL}")


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


def drop_state(program: torch.onnx.ONNXProgram) -> None:
    """Takes out of the file what the model writes for its next call.

    RuntimeError, naming it, where the model writes to an input, or to a buffer that its outputs depend on: ONNX files
    keep nothing from call to call.
    """
    import onnx_ir.passes.common as passes

    exported = program.exported_program
    assert exported is not None
    signature = exported.graph_signature
    if inputs := sorted(signature.user_inputs_to_mutate.values()):
        raise RuntimeError(
            f"to_onnx: model writes to its input {inputs[0]!r}, which an ONNX file cannot; clone it first"
        )
    written = set(signature.buffers_to_mutate.values())
    needed = _ancestors(exported.graph, set(map(str, signature.user_outputs)))
    for name, buffer in signature.inputs_to_buffers.items():
        if name in needed and buffer in written:
            raise RuntimeError(
                f"to_onnx: model writes to its buffer {buffer!r} and its outputs depend on that: {NO_STATE}"
            )
    if written:
        del program.model.graph.outputs[len(signature.user_outputs) :]
        passes.RemoveUnusedNodesPass()(program.model)


def _ancestors(graph: fx.Graph, names: set[str]) -> set[str]:
    """The nodes of these names and all that they are computed from, by name."""
    needed = set(names)
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed |= {other.name for other in node.all_input_nodes}
    return needed
