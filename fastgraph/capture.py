"""From an `nn.Module` to a graph of ATen operators, with every size free that the module leaves free."""

import inspect
import keyword
import logging
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from fastgraph.arguments import Signature, check_leaves, constant_key
from fastgraph.conditions import compile_condition, conditions, fixed
from fastgraph.cuda import check_available
from fastgraph.regions import inline_grad_modes
from fastgraph.tracing import TRACED, Call, FunctionOfTensors, Observed, attributes_set, plain_tensors, stand_in

# Layers whose training mode is not a pure function of the input.
_TRAINING_LAYERS = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
_TALKATIVE = ("torch", "torch.export", "torch._export", "torch.fx", "torch._subclasses", "torch._dynamo")
_GLOBALS = {"self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"}  # of the code of a graph
_LOCK = threading.RLock()  # torch.export is not made for several threads


@dataclass
class Captured:
    """A module's graph, and the class of calls that it holds for.

    Placeholders are the tensors among the flattened inputs, the output is the tuple of flattened outputs.
    `graph_module` holds the module's own parameters and buffers under their own names.
    """

    graph_module: fx.GraphModule
    in_spec: pytree.TreeSpec  # of (args, kwargs) in `signature`'s canonical form
    out_spec: pytree.TreeSpec
    conditions: list[str]  # what the graph relies on about the sizes of its inputs
    signature: Signature = field(default_factory=lambda: Signature(None))
    constants: dict[int, Any] = field(default_factory=dict)  # inputs that are no tensors, by their place
    strides: list[tuple[int, ...]] | None = None  # of every tensor, where the model's code looked at any
    grads: tuple[bool, ...] | None = None  # grad mode, and requires_grad of every tensor, likewise
    custom_gradients: list[str] = field(default_factory=list)  # autograd.Functions: their backward is not in the graph
    state: list[str] = field(default_factory=list)  # attributes that carry values from call to call: no graph can
    unseen: list[str] = field(default_factory=list)  # attributes that forward sets and that no result depends on
    attributes: list[str] = field(default_factory=list)  # tensors of the graph that are plain attributes of the model

    @property
    def graph(self) -> fx.Graph:
        """The graph of ATen operators."""
        return self.graph_module.graph

    @property
    def placeholders(self) -> list[fx.Node]:
        """One node per tensor among the flattened inputs."""
        return list(self.graph.find_nodes(op="placeholder"))

    @cached_property
    def plain_arguments(self) -> int | None:
        """How many positional arguments it takes, if each of them is one tensor, and there are no others."""
        count = self.in_spec.num_leaves
        plain = not self.constants and self.in_spec == pytree.tree_structure(((0,) * count, {}))
        return count if plain else None

    @cached_property
    def checks(self) -> list[Any]:
        """(condition, the function that checks it) for every condition."""
        return [(condition, compile_condition(condition)) for condition in self.conditions]

    def refusal(self, leaves: Sequence[Any]) -> Exception | None:
        """The error that says why the graph does not hold for these flattened inputs, tensors and others."""
        for place, value in self.constants.items():
            if constant_key(leaves[place]) != constant_key(value):
                what = f"needs the value of the example, {value!r}, got {_shown(leaves[place])}"
                return RuntimeError(f"{self.names[place]}: {what}")
        tensors = [leaf for i, leaf in enumerate(leaves) if i not in self.constants]
        named = {str(node.target): value for node, value in zip(self.placeholders, tensors, strict=True)}
        for node, value in zip(self.placeholders, tensors, strict=True):
            if not isinstance(value, torch.Tensor):
                return TypeError(f"{node.target}: needs a tensor, got {type(value).__name__}")
            if reason := _mismatch(node.meta["val"], value):
                return RuntimeError(f"{node.target}: needs {reason}")
        for condition, holds in self.checks:
            if not holds(named):
                used = {n: t for n, t in named.items() if f"{n}.shape" in condition}
                got = ", ".join(f"{n} of shape {list(t.shape)}" for n, t in used.items())
                return RuntimeError(f"inputs: the captured graph needs {condition}, got {got}")
        if self.strides is not None and self.strides != (got_strides := [tuple(t.stride()) for t in tensors]):
            return RuntimeError(f"inputs: the model looks at strides: needs {self.strides}, got {got_strides}")
        if self.grads is not None and self.grads != (got_grads := grad_facts(tensors)):
            return RuntimeError(f"inputs: the model looks at gradients: needs {self.grads}, got {got_grads}")
        return None

    def fixed_sizes(self) -> list[tuple[str, int, int]]:
        """(input, axis, size) for every size that is not free."""
        return [
            (str(node.target), axis, number)
            for node in self.placeholders
            for axis, size in enumerate(node.meta["val"].shape)
            if (number := fixed(size)) is not None
        ]

    def example(self, batch: int, *, related: bool) -> list[Any]:
        """Flattened inputs as those of the capture, with zeros for tensors, and with another size of the batch.

        The batch is axis 0 of the first tensor, and of all others that have the same size there in the capture; where
        `related`, only of those for which the graph needs the same.
        """
        sizes = [node.meta["val"].shape for node in self.placeholders]
        shapes = [[_hint(n) for n in shape] for shape in sizes]
        firsts = [(str(shape[0]) if related else _hint(shape[0])) if shape else None for shape in sizes]
        for shape, first in zip(shapes, firsts, strict=True):
            if shape and first == firsts[0]:
                shape[0] = batch
        values = [node.meta["val"] for node in self.placeholders]
        tensors = iter(torch.zeros(s, dtype=v.dtype, device=v.device) for s, v in zip(shapes, values, strict=True))
        return [self.constants[i] if i in self.constants else next(tensors) for i in range(self.in_spec.num_leaves)]

    def differences(self, other: "Captured") -> list[str]:
        """What this graph relies on and `other` does not, for a reader."""
        found = [c for c in self.conditions if c not in other.conditions]
        found += [
            f"{self.names[i]} = {value!r}" for i, value in self.constants.items() if other.constants.get(i) != value
        ]
        for mine, theirs in zip(self.placeholders, other.placeholders, strict=False):
            kinds = mine.meta["val"].dtype, theirs.meta["val"].dtype
            found += [f"{mine.target} of {kinds[0]}"] if kinds[0] != kinds[1] else []
        return found

    def over(self, model: nn.Module, memo: dict[int, Any]) -> "Captured":
        """The same graph with the tensors of `model`, a copy of the one that was captured."""
        made = replace(self, graph_module=read_from(model, deepcopy(self.graph_module, memo)))
        rebind(made.graph_module, model, self.attributes)
        return made

    @cached_property
    def names(self) -> list[str]:
        """A name for every flattened input, tensor or not."""
        example: Any = pytree.tree_unflatten([0] * self.in_spec.num_leaves, self.in_spec)
        return self.signature.names(*example)


def _hint(size: Any) -> int:
    """A size in the example."""
    return size if isinstance(size, int) else int(size.node.hint)


def grad_facts(tensors: Sequence[torch.Tensor]) -> tuple[bool, ...]:
    """Grad mode, and what of the inputs requires gradients."""
    return torch.is_grad_enabled(), *(t.requires_grad for t in tensors)


def _mismatch(expected: torch.Tensor, value: torch.Tensor) -> str | None:
    """What is needed of an input and what came, apart from its sizes."""
    if value.dim() != expected.dim():
        return f"a tensor of {expected.dim()} dimensions, {sizes(expected)}, got {list(value.shape)}"
    if not _same_device(expected.device, value.device):
        return f"device {expected.device}, got {value.device}"
    for what in ("dtype", "layout"):
        if getattr(expected, what) != getattr(value, what):
            return f"{what} {getattr(expected, what)}, got {getattr(value, what)}"
    return None


def _shown(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


def _same_device(a: torch.device, b: torch.device) -> bool:
    """Whether two devices are one, the first of a kind being meant where no number is given."""
    return a.type == b.type and (a.index or 0) == (b.index or 0)


def check_model(model: nn.Module) -> None:
    """TypeError for what is no module, ValueError for one that cannot be captured as it is."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: needs a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model: needs a torch.nn.Module of Python code, got a {type(model).__name__} of TorchScript")
    for name, layer in model.named_modules():
        if layer.training and isinstance(layer, _TRAINING_LAYERS):
            where = f"{name} ({type(layer).__name__})" if name else type(layer).__name__
            raise ValueError(f"model: needs eval mode, got {where} in training mode; call model.eval() first")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(f"model: {name} has no size yet; call the model once before it is optimized")
        if tensor.device.type == "meta":
            raise ValueError(f"model: {name} is on the meta device, without values; load weights first")


def unwrapped(model: Any) -> Any:
    """The module behind a wrapper that computes the same: DataParallel, torch.compile's, an optimized module."""
    while isinstance(model, nn.Module):
        inner = next((vars(model)[n] for n in ("_original", "_orig_mod") if n in vars(model)), None)
        inner = model._modules.get("_orig_mod") if inner is None else inner
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            break
        model = inner
    return model


def check_example_inputs(example_inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The inputs as a tuple; TypeError where they are none."""
    if isinstance(example_inputs, torch.Tensor | str | Mapping) or not isinstance(example_inputs, Sequence):
        raise TypeError(f"example_inputs: needs a tuple of the model's arguments, got {type(example_inputs).__name__}")
    return tuple(example_inputs)


def free_ones() -> Any:
    """While this context is open, tracing leaves sizes that are 1 in the example as free as any other."""
    from torch.fx.experimental import _config

    return _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


def _free_sizes(tensors: Sequence[torch.Tensor], axes: int | None) -> Any:
    """torch.export's dynamic_shapes with the first `axes` axes of every tensor, all by default, left to the model."""
    free = [{axis: torch.export.Dim.AUTO for axis in range(t.dim()) if axes is None or axis < axes} for t in tensors]
    return {"tensors": tuple(free)}


# Ways to ask torch.export for a graph, from every size free to every size fixed: whether sizes of 1 are as free as
# others, and how many axes of each tensor are free (None: all).
_ATTEMPTS = ((True, None), (False, None), (False, 1), (False, 0))


def _export(call: Call) -> torch.export.ExportedProgram:
    """torch.export with gradients on, so that regions without show, unless the model looks at the caller's mode."""
    with torch.set_grad_enabled(not call.is_inference):
        program = _with_free_sizes(call)
    if call.observed.grads and not call.grad_mode:
        with torch.no_grad():
            program = _with_free_sizes(call)
    return program


def _with_free_sizes(call: Call) -> torch.export.ExportedProgram:
    """As many free sizes as torch.export takes. Its error with ordinary rules where it takes none."""
    errors = []
    for ones, axes in _ATTEMPTS:
        call.observed = Observed()
        try:
            with free_ones() if ones else nullcontext():
                shapes = _free_sizes(call.tensors, axes)
                module = FunctionOfTensors(call)
                program = torch.export.export(module, tuple(call.tensors), dynamic_shapes=shapes, strict=False)
            _check_example(call, program)
            return program
        except Exception as error:
            errors.append(error)
    raise errors[1]


class _WithoutThisThread:
    """A stream that what this thread writes does not reach: torch.export prints graphs that it gives up."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        """As that of the stream."""
        return len(text) if threading.get_ident() == self._thread else int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _check_example(call: Call, program: torch.export.ExportedProgram) -> None:
    """RuntimeError where the graph does not hold for the very inputs that it was traced with."""
    given = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    inputs = [nodes[name] for name in given]
    tensors = {str(node.target): tensor for node, tensor in zip(inputs, call.tensors, strict=True)}
    for condition in conditions(inputs):
        if not compile_condition(condition)(tensors):
            raise RuntimeError(f"the graph needs {condition}, which the example is not")


@contextmanager
def _undisturbed(call: Call) -> Iterator[None]:
    """Tracing depends on none of the caller's modes, and says nothing: what matters comes as an error of ours."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    with _LOCK, warnings.catch_warnings(), redirect_stderr(_WithoutThisThread(sys.stderr)):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            # A tensor that is a plain attribute is the model's own while it is traced.
            kept = torch.autograd._unsafe_preserve_version_counter(
                tuple(t for t in plain_tensors(call.model) if not t.is_inference())
            )
            with kept, torch.inference_mode(call.is_inference), torch._C._DisableAutocast():
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def export(model: nn.Module, example_inputs: Sequence[Any], example_kwargs: Mapping[str, Any] | None = None) -> Any:
    """(the call that was traced, torch's ExportedProgram of it), with free sizes.

    One RuntimeError that names the cause where the model cannot be exported.
    """
    signature = Signature.of(model.forward)
    try:
        args, kwargs = signature.canonical(example_inputs, example_kwargs or {})
    except TypeError as error:
        takes = f"forward{inspect.signature(model.forward)}"
        raise TypeError(f"example_inputs, example_kwargs: need the arguments of {takes}: {error}") from error
    leaves, in_spec = pytree.tree_flatten((args, kwargs))
    names = signature.names(args, kwargs)
    check_leaves(leaves, names)
    call = Call(model, leaves, in_spec, signature)
    if not call.tensors:
        raise ValueError(f"example_inputs: needs at least one tensor, got {list(example_inputs)}")
    for name, value in [*zip(names, leaves, strict=True), *(("model", p) for p in model.parameters())]:
        if isinstance(value, torch.Tensor):
            check_available(value.device, name if name == "model" else "example_inputs")
            if value.device.type == "meta":
                raise ValueError(f"{name}: needs a tensor with values, got one on the meta device")
    with _undisturbed(call):
        try:
            program = _export(call)
        except Exception as error:
            cause = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
            name = type(model).__name__
            raise RuntimeError(f"model: torch.export cannot capture {name}: {type(error).__name__}: {cause}") from error
        call.state = _state(call, program)
    return call, program


def _assigned(call: Call) -> list[str]:
    """Names of the attributes that forward sets, in order."""
    return sorted(".".join(filter(None, key)) for key in call.observed.assigned)


def _state(call: Call, program: torch.export.ExportedProgram) -> list[str]:
    """Of the attributes that forward sets, those that results of later calls depend on.

    Traced once more with the attributes as the first call leaves them: is it the same graph?
    """
    assigned = call.observed.assigned
    names = set(_assigned(call))
    if not assigned:
        return []
    read = program.graph_signature.inputs_to_lifted_tensor_constants
    used = {str(read.get(node.name)) for node in program.graph.find_nodes(op="placeholder") if node.users}
    if names & used:  # what an earlier call has set
        return sorted(names)
    again = Call(call.model, call.leaves, call.in_spec, call.signature)
    try:
        with attributes_set(call.model, {key: stand_in(value) for key, value in assigned.items()}):
            if _export(again).graph_module.code == program.graph_module.code:
                return []
    except Exception:  # no stand-in, or another way through forward that cannot be traced
        pass
    return sorted(names)


def capture(
    model: nn.Module, example_inputs: Sequence[Any], example_kwargs: Mapping[str, Any] | None = None
) -> Captured:
    """Captures `model` as it is called with `example_inputs` and `example_kwargs`.

    Errors: TypeError and ValueError for a wrong model or wrong inputs; RuntimeError, naming the cause, where a device
    is not there, calling the model fails, or torch.export does not take it.
    """
    check_model(model)
    inputs = check_example_inputs(example_inputs)
    call, program = export(model, inputs, example_kwargs)
    observed = call.observed
    assert observed.out_spec is not None
    unlifted = program.module(check_guards=False)
    graph = unlifted.graph
    assert isinstance(graph, fx.Graph)
    inline_grad_modes(unlifted, graph)
    _drop_self_copies(graph)
    graph.set_codegen(fx.graph.CodeGen())  # flat inputs, flat outputs: the pytrees are OptimizedModule's business
    _return_all(graph, observed.outputs)
    _rename(graph, [n for n, leaf in zip(call.names, call.leaves, strict=True) if isinstance(leaf, torch.Tensor)])
    return Captured(
        read_from(model, fx.GraphModule(unlifted, graph)),
        call.in_spec,
        observed.out_spec,
        conditions(list(graph.find_nodes(op="placeholder"))),
        signature=call.signature,
        constants={i: leaf for i, leaf in enumerate(call.leaves) if not isinstance(leaf, torch.Tensor)},
        strides=[tuple(t.stride()) for t in call.tensors] if observed.strides else None,
        grads=grad_facts(call.tensors) if observed.grads else None,
        custom_gradients=list(dict.fromkeys(observed.custom_gradients)),
        state=call.state,
        unseen=[] if call.state else _assigned(call),
        attributes=_plain_attributes(model, graph),
    )


def _drop_self_copies(graph: fx.Graph) -> None:
    """`self.count += 1` writes in place, and torch.export copies the result onto the buffer that it is."""
    for node in list(graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default)):
        target, source = node.args[:2]
        while isinstance(source, fx.Node) and source is not target and _writes_and_returns(source):
            source = source.args[0]
        if source is target:
            node.replace_all_uses_with(target)
            graph.erase_node(node)


def _writes_and_returns(node: fx.Node) -> bool:
    """Whether an operator writes all of its first argument and returns it."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.arguments or len(schema.returns) != 1:
        return False
    first, result = schema.arguments[0].alias_info, schema.returns[0].alias_info
    same = first is not None and result is not None and first.before_set == result.before_set
    return bool(same and first.is_write and torch.Tag.inplace_view not in node.target.tags)  # type: ignore[union-attr]


def _return_all(graph: fx.Graph, outputs: Sequence[Any]) -> None:
    """The graph returns every flattened output: what it computes, and between that what is always the same."""
    output = graph.output_node()
    computed = iter(output.args[0])  # type: ignore[arg-type]
    output.args = (tuple(next(computed) if value is TRACED else value for value in outputs),)


def _rename(graph: fx.Graph, names: Sequence[str]) -> None:
    """Names the placeholders as the model's author did."""
    taken = {node.name for node in graph.nodes if node.op != "placeholder"} | _GLOBALS
    for node, name in zip(graph.find_nodes(op="placeholder"), names, strict=True):
        while name in taken or keyword.iskeyword(name):
            name += "_"
        taken.add(name)
        node._rename(name)  # to another one where it is Python's: input
        node.target = name


def read_from(model: nn.Module, graph_module: fx.GraphModule) -> fx.GraphModule:
    """`graph_module`, reading parameters and buffers from the model's own dictionaries, so that a new one is seen.

    `model` is the module that was captured, or a graph of it.
    """
    for path, module in list(graph_module.named_modules()):
        own = None if isinstance(module, fx.GraphModule) and path else _submodule(model, path)
        if own is None:
            continue
        constants = {n: t for n, t in module._buffers.items() if n not in own._buffers}
        module.__dict__["_parameters"], module.__dict__["_buffers"] = own._parameters, own._buffers
        module.__dict__.update(constants)
    return graph_module


def rebind(graph_module: nn.Module, model: nn.Module, attributes: Sequence[str]) -> None:
    """Gives a graph the tensors under these names, neither parameters nor buffers, as they are in `model` now."""
    for target in attributes:
        path, _, name = target.rpartition(".")
        graph_module.get_submodule(path).__dict__[name] = vars(model.get_submodule(path))[name]


def _plain_attributes(model: nn.Module, graph: fx.Graph) -> list[str]:
    found = []
    for node in graph.find_nodes(op="get_attr"):
        path, _, name = str(node.target).rpartition(".")
        owner = _submodule(model, path)
        if owner is not None and isinstance(vars(owner).get(name), torch.Tensor):
            found.append(str(node.target))
    return found


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def flatten_inputs(captured: Captured, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The call's tensors in the order of the placeholders; TypeError where their structure is another."""
    leaves = flatten_call(captured, args, kwargs)
    return leaves if not captured.constants else [v for i, v in enumerate(leaves) if i not in captured.constants]


def flatten_call(captured: Captured, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The call's flattened inputs, tensors and others; TypeError where their structure is another."""
    if not kwargs and len(args) == captured.plain_arguments and all(isinstance(a, torch.Tensor) for a in args):
        return list(args)  # without the pytree: 6 us of a call
    flat, spec = pytree.tree_flatten(captured.signature.canonical(args, kwargs))
    if spec != captured.in_spec:
        what = f"{written(captured.in_spec)}, got {written(spec)}"
        raise TypeError(f"inputs: needs the structure of the example inputs, {what}")
    return flat


def written(spec: pytree.TreeSpec) -> str:
    """A call's structure for a reader: (*, [*, *], scale=*)."""
    args, kwargs = pytree.tree_unflatten(["*"] * spec.num_leaves, spec)
    parts = [str(a) for a in args] + [f"{k}={v}" for k, v in kwargs.items()]
    return f"({', '.join(parts)})".replace("'*'", "*")


def check_inputs(captured: Captured, flat: Sequence[Any]) -> None:
    """RuntimeError where these tensors are not what the graph was captured for."""
    tensors = iter(flat)
    leaves = [
        captured.constants.get(i) if i in captured.constants else next(tensors)
        for i in range(captured.in_spec.num_leaves)
    ]
    if (error := captured.refusal(leaves)) is not None:
        raise error


def sizes(tensor: torch.Tensor) -> str:
    """[*, 784]: the sizes of a captured tensor, a star for a free one."""
    numbers = [fixed(size) for size in tensor.shape]
    return "[" + ", ".join("*" if n is None else str(n) for n in numbers) + "]"
