"""From an `nn.Module` to a graph of ATen operators, with every size free that the module leaves free."""

import inspect
import keyword
import logging
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from fastgraph.arguments import Signature, check_leaves
from fastgraph.captured import Captured, grad_facts, read_from, submodule
from fastgraph.conditions import compile_condition
from fastgraph.cuda import check_available
from fastgraph.regions import inline_grad_modes
from fastgraph.tracing import TRACED, Call, FunctionOfTensors, Observed, attributes_set, plain_tensors, stand_in

# Layers whose training mode is not a pure function of the input.
_TRAINING_LAYERS = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
_TALKATIVE = ("torch", "torch.export", "torch._export", "torch.fx", "torch._subclasses", "torch._dynamo")
_GLOBALS = {"self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"}  # of the code of a graph
_LOCK = threading.RLock()  # torch.export is not made for several threads


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
    for condition in _conditions(inputs):
        if not compile_condition(condition)(tensors):
            raise RuntimeError(f"the graph needs {condition}, which the example is not")


def _conditions(placeholders: Sequence[fx.Node]) -> list[str]:
    from fastgraph.guards import conditions  # which imports sympy: who only loads a module does without

    return conditions(placeholders)


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
        _conditions(list(graph.find_nodes(op="placeholder"))),
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


def _plain_attributes(model: nn.Module, graph: fx.Graph) -> list[str]:
    found = []
    for node in graph.find_nodes(op="get_attr"):
        path, _, name = str(node.target).rpartition(".")
        owner = submodule(model, path)
        if owner is not None and isinstance(vars(owner).get(name), torch.Tensor):
            found.append(str(node.target))
    return found
