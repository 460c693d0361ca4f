"""From torch.compile's graphs, which are of torch functions and methods, to ATen operators.

A graph is cut into regions at what changes a mode (gradients, autocast, inference) and at what has no ATen form
(higher order operators, foreign functions). Each region is traced on the fake values that dynamo recorded, and it is
noted which ATen nodes stand for which torch node.
"""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._dynamo.utils import preserve_rng_state
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.amp import autocast_mode
from torch.autograd import grad_mode
from torch.fx.experimental import proxy_tensor
from torch.utils import _pytree as pytree

from fastgraph.aliases import is_mutation, tensors, written

_FAILURES = 8  # nodes of a graph that may turn out to have no ATen form, before the rest is left as it is
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_MODES = (
    torch._C._set_grad_enabled,
    grad_mode._enter_inference_mode,
    grad_mode._exit_inference_mode,
    autocast_mode._enter_autocast,
    autocast_mode._exit_autocast,
)


@dataclass
class Region:
    """Nodes of a torch graph that run one after the other in one state of the modes."""

    grads: bool | None  # whether gradients are on; None: as in the call
    autocast: tuple[tuple[Any, ...], ...]  # arguments of torch.autocast, for every context that is open
    nodes: list[fx.Node] = field(default_factory=list)


@dataclass
class Traced:
    """A region as ATen operators."""

    region: Region
    graph_module: fx.GraphModule
    given: list[fx.Node]  # the torch node of each placeholder
    owner: dict[str, fx.Node]  # ATen nodes by name: the torch node that they were recorded for
    made: dict[str, fx.Node]  # ATen nodes by name: the torch node whose result they are
    results: dict[fx.Node, Any]  # what the torch nodes return, in the trace

    @property
    def graph(self) -> fx.Graph:
        """The graph of ATen operators."""
        return self.graph_module.graph

    def written_storages(self) -> set[int]:
        """The memory that its operators write."""
        return {storage for node in self.graph.nodes for arg in written(node) for storage in storages(arg)}

    def pure(self) -> set[fx.Node]:
        """The torch nodes that write nothing."""
        impure = {self.owner[n.name] for n in self.graph.nodes if n.name in self.owner and is_mutation(n)}
        return set(self.region.nodes) - impure


class Untraceable(Exception):
    """A node of a torch graph has no ATen form."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__(node.name)
        self.node = node


def storages(node: fx.Node) -> set[int]:
    """The memory of what was recorded for a node, of either kind of graph."""
    values = tensors(node.meta.get("val", node.meta.get("example_value")))
    return {t.untyped_storage()._cdata for t in values if t.layout is torch.strided}


def split(graph: fx.Graph) -> tuple[list[Region], list[fx.Node]]:
    """The regions, and the nodes between them of which nothing is known."""
    regions, foreign, outer = [Region(None, ())], list[fx.Node](), list[bool | None]()
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        if is_plain(node):
            regions[-1].nodes.append(node)
            continue
        grads, autocast = regions[-1].grads, regions[-1].autocast
        if node.target is torch._C._set_grad_enabled:
            grads = bool(node.args[0])
        elif node.target is grad_mode._enter_inference_mode:
            outer.append(grads)
            grads = not node.args[0]
        elif node.target is grad_mode._exit_inference_mode:
            grads = outer.pop()
        elif node.target is autocast_mode._enter_autocast:
            autocast = (*autocast, tuple(node.args))
        elif node.target is autocast_mode._exit_autocast:
            autocast = autocast[:-1]
        else:
            foreign.append(node)
        regions.append(Region(grads, autocast))
    return [region for region in regions if region.nodes], foreign


def is_plain(node: fx.Node) -> bool:
    """A method of tensors, or a function of torch or of Python's own operators that changes no mode."""
    target: Any = node.target
    if node.op != "call_function" or target in _MODES or isinstance(target, torch._ops.HigherOrderOperator):
        return node.op == "call_method"
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return True
    module = getattr(target, "__module__", None) or ""
    owner = getattr(target, "__self__", None)  # of the functions of torch's own C++ classes and modules
    if not module and owner is not None and not isinstance(owner, torch.autograd.function.FunctionMeta):
        module = getattr(owner, "__name__", None) or type(owner).__module__
    return module.partition(".")[0] in ("torch", "_operator", "operator", "math", "builtins")


def trace_all(graph: fx.Graph, fake_mode: FakeTensorMode) -> tuple[list[Traced], list[fx.Node]]:
    """All regions that can be traced, and the nodes of which nothing is known."""
    regions, foreign = split(graph)
    failures, traced = 0, list[Traced]()
    while regions:
        region = regions.pop(0)
        if failures > _FAILURES:
            foreign += region.nodes
            continue
        try:
            traced.append(trace(region, fake_mode))
        except Untraceable as error:
            failures += 1
            foreign.append(error.node)
            at = region.nodes.index(error.node)
            parts = (region.nodes[:at], region.nodes[at + 1 :])
            regions[:0] = [Region(region.grads, region.autocast, nodes) for nodes in parts if nodes]
    return traced, foreign


def trace(region: Region, fake_mode: FakeTensorMode) -> Traced:
    """The region's ATen operators. Raises `Untraceable`."""
    inside = set(region.nodes)
    given = [n for n in dict.fromkeys(a for node in region.nodes for a in node.all_input_nodes) if n not in inside]
    examples = {node: pytree.tree_flatten(_example(node, region.nodes)) for node in given}
    places = [(n, i) for n, (leaves, _) in examples.items() for i, x in enumerate(leaves) if _is_symbolic(x)]
    recorder = _Recorder(region.nodes)

    def run(*values: Any) -> list[torch.Tensor]:
        flat = {node: list(leaves) for node, (leaves, _) in examples.items()}
        for (node, i), value in zip(places, values, strict=True):
            flat[node][i] = value
        return recorder.run({node: pytree.tree_unflatten(flat[node], spec) for node, (_, spec) in examples.items()})

    inputs = [_without_history(examples[node][0][i]) for node, i in places]
    try:
        with _state(region, fake_mode):
            made = proxy_tensor.make_fx(run, pre_dispatch=True, _allow_non_fake_inputs=True)(*inputs)
    except Exception as error:  # whatever torch raises: the region is then run as dynamo gave it
        raise Untraceable(recorder.current) from error
    return Traced(region, made, [node for node, _ in places], recorder.owner, recorder.made, recorder.results)


def _example(node: fx.Node, users: Sequence[fx.Node]) -> Any:
    if "example_value" not in node.meta:
        raise Untraceable(next(user for user in users if node in user.all_input_nodes))
    return node.meta["example_value"]


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, *_SYMBOLS))


def _without_history(value: Any) -> Any:
    """The same memory: a history of gradients would stand in the way of writes in place."""
    return value.detach() if isinstance(value, torch.Tensor) else value


def _state(region: Region, fake_mode: FakeTensorMode) -> ExitStack:
    """In which a region is traced: tensors that it makes are fake, random numbers and dynamo's symbols stay."""
    shapes = fake_mode.shape_env
    stack = ExitStack()
    stack.enter_context(preserve_rng_state())
    stack.enter_context(fake_mode)
    stack.enter_context(torch.no_grad())
    stack.enter_context(nullcontext() if shapes is None else shapes.ignore_fresh_unbacked_symbols())
    for device, dtype, enabled, _ in region.autocast:
        stack.enter_context(torch.autocast(device, dtype, enabled, cache_enabled=False))
    return stack


class _Recorder:
    """Runs torch nodes while make_fx records ATen nodes."""

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        self._nodes = nodes
        self.current = nodes[0]
        self.owner: dict[str, fx.Node] = {}
        self.made: dict[str, fx.Node] = {}
        self.results: dict[fx.Node, Any] = {}

    def run(self, values: dict[fx.Node, Any]) -> list[torch.Tensor]:
        """All tensors that other regions use."""
        mode = proxy_tensor.get_proxy_mode()
        assert mode is not None
        self._tracer: Any = mode.tracer
        for node, value in values.items():
            self._note_result(node, value)
        for node in self._nodes:
            self.current = node
            last = next(iter(reversed(self._tracer.graph.nodes)))
            values[node] = self.results[node] = _call(node, values)
            while last.next.op != "root":
                last = last.next
                self.owner[last.name] = node
            self._note_result(node, values[node])
        outside = (n for n in self._nodes if any(user not in self.results for user in n.users))
        return [leaf for n in outside for leaf in pytree.tree_leaves(values[n]) if isinstance(leaf, torch.Tensor)]

    def _note_result(self, node: fx.Node, value: Any) -> None:
        slot = proxy_tensor.get_proxy_slot(value, self._tracer, None) if isinstance(value, torch.Tensor) else None
        if slot is not None:
            self.made.setdefault(slot.proxy.node.name, node)


def _call(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
