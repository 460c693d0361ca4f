"""From an `nn.Module` to a graph of ATen operators, with every size free that the module leaves free."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch._dynamo  # what torch.export would import in its first call: a second that belongs to the import
from torch import fx, nn
from torch.fx.experimental import _config
from torch.utils import _pytree as pytree

from fastgraph.conditions import compile_condition, conditions
from fastgraph.cuda import check_available

# Layers whose training mode is not a pure function of the input.
_TRAINING_LAYERS = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


@dataclass
class Captured:
    """A module's graph. Placeholders are the flattened inputs, the output is the tuple of flattened outputs.

    `graph_module` holds the module's own parameters and buffers under their own names. `conditions` are what the graph
    relies on about the sizes of its inputs.
    """

    graph_module: fx.GraphModule
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    conditions: list[str]

    @property
    def graph(self) -> fx.Graph:
        """The graph of ATen operators."""
        return self.graph_module.graph

    @property
    def placeholders(self) -> list[fx.Node]:
        """One node per flattened input."""
        return list(self.graph.find_nodes(op="placeholder"))

    @cached_property
    def plain_arguments(self) -> int | None:
        """How many positional arguments it takes, if each of them is one input, and there are no others."""
        count = self.in_spec.num_leaves
        return count if self.in_spec == pytree.tree_structure(((0,) * count, {})) else None

    @cached_property
    def checks(self) -> list[Any]:
        """(condition, the function that checks it) for every condition."""
        return [(condition, compile_condition(condition)) for condition in self.conditions]


def check_model(model: nn.Module) -> None:
    """TypeError for what is no module, ValueError for one whose training mode would be captured."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: needs a torch.nn.Module, got {type(model).__name__}")
    for name, layer in model.named_modules():
        if layer.training and isinstance(layer, _TRAINING_LAYERS):
            where = f"{name} ({type(layer).__name__})" if name else type(layer).__name__
            raise ValueError(f"model: needs eval mode, got {where} in training mode; call model.eval() first")


def check_example_inputs(example_inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The inputs as a tuple; TypeError or ValueError where they are none."""
    if isinstance(example_inputs, torch.Tensor) or not isinstance(example_inputs, Sequence):
        raise TypeError(f"example_inputs: needs a tuple of the model's arguments, got {type(example_inputs).__name__}")
    if not example_inputs:
        raise ValueError("example_inputs: needs at least one input, got an empty tuple")
    return tuple(example_inputs)


def _free_sizes(inputs: Any, ones: bool) -> Any:
    """torch.export's dynamic_shapes with every axis of every tensor left to the model; `ones`: those of size 1 too."""

    def free(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        return {axis: torch.export.Dim.AUTO for axis, size in enumerate(value.shape) if ones or size != 1}

    return pytree.tree_map(free, inputs)


def free_ones() -> Any:
    """While this context is open, tracing leaves sizes that are 1 in the example as free as any other."""
    return _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


def export(model: nn.Module, example_inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """torch.export with free sizes; one RuntimeError that names the cause where the model cannot be exported.

    Sizes of 1 are free as well, unless the model broadcasts along them: then those in the example are fixed.
    """
    try:
        with free_ones():
            return _export(model, example_inputs, ones=True)
    except Exception as error:
        if any(1 in t.shape for t in pytree.tree_leaves(example_inputs) if isinstance(t, torch.Tensor)):
            with suppress(Exception):
                return _export(model, example_inputs, ones=False)
        cause = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        name = type(model).__name__
        raise RuntimeError(f"model: torch.export cannot capture {name}: {type(error).__name__}: {cause}") from error


def _export(model: nn.Module, example_inputs: tuple[Any, ...], *, ones: bool) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # torch.export's own use of torch
        shapes = _free_sizes(example_inputs, ones)
        return torch.export.export(model, example_inputs, dynamic_shapes=shapes, strict=False)


def capture(model: nn.Module, example_inputs: Sequence[Any]) -> Captured:
    """Captures `model` as it is called with `example_inputs`.

    Errors: TypeError and ValueError for a wrong model or wrong inputs; RuntimeError, naming the cause, where a device
    is not there, calling the model fails, or torch.export does not take it.
    """
    check_model(model)
    inputs = check_example_inputs(example_inputs)
    for name, values in (("example_inputs", inputs), ("model", list(model.parameters()))):
        for value in pytree.tree_leaves(values):
            if isinstance(value, torch.Tensor):
                check_available(value.device, name)
    program = export(model, inputs)
    unlifted = program.module()
    graph = unlifted.graph
    assert isinstance(graph, fx.Graph)
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.erase_node(node)  # the same checks are in `conditions`, where they can be read and saved
    graph.set_codegen(fx.graph.CodeGen())  # flat inputs, flat outputs: the pytrees are OptimizedModule's business
    in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    assert in_spec is not None
    assert out_spec is not None
    graph_module = fx.GraphModule(unlifted, graph)
    return Captured(graph_module, in_spec, out_spec, conditions(list(graph.find_nodes(op="placeholder"))))


def flatten_inputs(captured: Captured, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The call's inputs in the order of the placeholders; TypeError where their structure is another."""
    if not kwargs and len(args) == captured.plain_arguments and all(isinstance(a, torch.Tensor) for a in args):
        return list(args)  # without the pytree: 6 us of a call
    flat, spec = pytree.tree_flatten((args, dict(kwargs)))
    if spec != captured.in_spec:
        expected = pytree.tree_unflatten(["*"] * captured.in_spec.num_leaves, captured.in_spec)
        got = pytree.tree_unflatten(["*"] * len(flat), spec)
        raise TypeError(f"inputs: needs the structure of the example inputs, {_call(expected)}, got {_call(got)}")
    return flat


def _call(structure: Any) -> str:
    args, kwargs = structure
    parts = [str(a) for a in args] + [f"{k}={v}" for k, v in kwargs.items()]
    return f"({', '.join(parts)})"


def check_inputs(captured: Captured, flat: Sequence[Any]) -> None:
    """RuntimeError (TypeError for what is no tensor) where the inputs are not what the graph was captured for."""
    for node, value in zip(captured.placeholders, flat, strict=True):
        expected = node.meta.get("val")
        if not isinstance(expected, torch.Tensor):
            if type(value) is not type(expected) or value != expected:
                raise RuntimeError(f"{node.name}: needs the value of the example, {expected!r}, got {value!r}")
        elif not isinstance(value, torch.Tensor):
            raise TypeError(f"{node.name}: needs a tensor, got {type(value).__name__}")
        elif value.dim() != expected.dim():
            needs = f"needs a tensor of {expected.dim()} dimensions"
            raise RuntimeError(f"{node.name}: {needs}, {sizes(expected)}, got {list(value.shape)}")
    tensors = {node.name: value for node, value in zip(captured.placeholders, flat, strict=True)}
    for condition, holds in captured.checks:
        if not holds(tensors):
            got = ", ".join(
                f"{name} of shape {list(t.shape)}" for name, t in tensors.items() if f"{name}.shape" in condition
            )
            raise RuntimeError(f"inputs: the captured graph needs {condition}, got {got}")


def sizes(tensor: torch.Tensor) -> str:
    """[*, 784]: the sizes of a captured tensor, a star for a free one."""
    fixed = [n if isinstance(n, int) else n.node.maybe_as_int() for n in tensor.shape]
    return "[" + ", ".join("*" if n is None else str(n) for n in fixed) + "]"
