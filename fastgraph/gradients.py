"""The direct engine's program with gradients on: packed weights and computed constants as without, and a backward.

A constant that is computed from parameters (a folded batch-norm) is not computed in the call, and gradients still reach
the parameters: its computation is repeated in backward, with gradients. A fused op runs its packed kernel, and its
backward is the op's own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx

from fastgraph.aliases import Aliases
from fastgraph.bindings import bound
from fastgraph.kernels import autograd
from fastgraph.kernels.library import Op


class GradientProgram:
    """`graph` as a function of its inputs. `slots`: where its parameters are; `fused`: the fused ops that have packed
    weights, with their names among a state's values."""

    def __init__(
        self, graph: fx.Graph, constants: set[fx.Node], slots: dict[fx.Node, Any], fused: dict[fx.Node, str]
    ) -> None:
        self._slots, self._fused = slots, fused
        used = [n for n in graph.nodes if n.op == "call_function" and n in constants]
        self._computed = [n for n in used if any(user not in constants for user in n.users)]
        self._given = [node for node in slots if node in constants]
        self._computing = _Computing(graph, constants, self._computed, self._given) if self._computed else None
        self._forward = compiled(self._program(graph, constants))
        self._functions = {name: differentiable(node) for node, name in fused.items()}

    def _program(self, graph: fx.Graph, constants: set[fx.Node]) -> fx.Graph:
        program = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        names = {node: f"parameter_{i}" for i, node in enumerate(self._slots)}
        for node in graph.nodes:
            if node in names:
                mapping[node] = program.get_attr(names[node])
        if self._computed:
            computed = program.call_module("computed")
            for i, node in enumerate(self._computed):
                mapping[node] = program.call_function(_item, (computed, i))
        aliases, seen = Aliases(graph), set()
        for node in graph.nodes:
            seen.add(node)
            if node in mapping or node in constants:
                continue
            if node in self._fused:
                flat = [mapping.get(leaf, leaf) if isinstance(leaf, fx.Node) else leaf for leaf in _flat(node)]
                input = mapping[node.args[0]]
                if any(writer not in seen for writer in aliases.writers(node.args[0])):
                    # Backward would read what is written over by then; eager keeps a copy of some inputs.
                    input = program.call_function(torch.ops.aten.clone.default, (input,))
                mapping[node] = program.call_module(self._fused[node], (input, *flat))
            else:
                mapping[node] = program.node_copy(node, lambda n: mapping[n])
        return program

    def bind(self, values: SimpleNamespace, computed: dict[fx.Node, torch.Tensor]) -> Callable[..., Any]:
        """The program for one state of the parameters: `values` have the kernels, `computed` the constants."""
        parameters = [owner[name] for owner, name in self._slots.values()]
        bound = {f"parameter_{i}": parameter for i, parameter in enumerate(parameters)}
        for name, function in self._functions.items():
            bound[name] = partial(function.apply, getattr(values, name))
        if self._computing is not None:
            given = [owner[name] for owner, name in (self._slots[node] for node in self._given)]
            bound["computed"] = partial(self._computing, [computed[node] for node in self._computed], given)
        return partial(self._forward, SimpleNamespace(**bound))


def _item(values: Any, index: int) -> Any:
    return values[index]


def _flat(node: fx.Node) -> list[Any]:
    """All arguments of a fused op but its input, flattened."""
    return autograd.flatten(node.args[1:])[0]


class _Kept:
    """What an op's backward finds on its ctx."""

    saved_tensors: tuple[torch.Tensor, ...] = ()

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        """As that of an autograd.Function's ctx."""
        self.saved_tensors = tensors


def differentiable(node: fx.Node) -> Any:
    """An autograd.Function of (kernel, input, *flattened arguments). Arguments are put in order in backward only."""
    op = Op.of(node.target)
    assert op is not None
    leaves, lengths = autograd.flatten(node.args[1:])
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, fx.Node)]

    def forward(ctx: Any, kernel: Any, input: torch.Tensor, *flat: Any) -> torch.Tensor:
        ctx.save_for_backward(input, *(flat[i] for i in places))
        result: torch.Tensor = kernel(input)
        return result

    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        input, *tensors = ctx.saved_tensors
        flat = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            flat[place] = tensor
        kept = _Kept()
        op.setup_context(kept, (input, *autograd.unflatten(flat, lengths)), None)
        return op.backward(kept, grad)

    return autograd.function(op.name, backward, 1, forward)


class _Computing:
    """Constants that are computed from parameters: known in forward, computed again in backward."""

    def __init__(self, graph: fx.Graph, constants: set[fx.Node], results: list[fx.Node], given: list[fx.Node]) -> None:
        program = fx.Graph()
        mapping = {node: program.placeholder(f"parameter_{i}") for i, node in enumerate(given)}
        for node in graph.nodes:
            if node in constants and node not in mapping:
                mapping[node] = program.node_copy(node, lambda n: mapping[n])
        program.output(tuple(mapping[node] for node in results))
        program.eliminate_dead_code()
        compute = compiled(program)
        sources = [_sources(node) for node in results]
        places = [[i for i, node in enumerate(given) if node in found] for found in sources]
        self._function = _recomputed(lambda parameters: compute(None, *parameters), places)

    def __call__(self, cached: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        result: tuple[torch.Tensor, ...] = self._function.apply(cached, *parameters)
        return result


def _sources(node: fx.Node) -> set[fx.Node]:
    """What a value is computed from."""
    found, pending = set(), [node]
    while pending:
        inputs = [n for n in pending.pop().all_input_nodes if n not in found]
        found.update(inputs)
        pending += inputs
    return found


def _recomputed(compute: Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, ...]], sources: list[list[int]]) -> Any:
    """`sources`: for every result the places of the parameters that it is computed from."""

    class Computed(torch.autograd.Function):
        """`cached` is `compute(parameters)`."""

        @staticmethod
        def forward(ctx: Any, cached: Sequence[torch.Tensor], *parameters: torch.Tensor) -> Any:
            ctx.save_for_backward(*parameters)
            ctx.set_materialize_grads(False)  # a parameter behind results without a gradient gets none, as in eager
            results = tuple(value.detach() for value in cached)
            wanted = [any(parameters[i].requires_grad for i in places) for places in sources]
            floating = [r.is_floating_point() or r.is_complex() for r in results]
            fixed = [r for r, w, f in zip(results, wanted, floating, strict=True) if not (w and f)]
            ctx.mark_non_differentiable(*fixed)
            return results

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> Any:
            again = torch.is_grad_enabled()  # for derivatives of derivatives
            needed = ctx.needs_input_grad[1:]
            with torch.enable_grad():
                given = ctx.saved_tensors
                if not again:
                    given = [t.detach().requires_grad_(n) for t, n in zip(given, needed, strict=True)]
                results = compute(given)
                pairs = [(r, g) for r, g in zip(results, grads, strict=True) if r.requires_grad and g is not None]
            if not pairs:
                return None, *(None for _ in needed)
            wanted = [t for t, n in zip(given, needed, strict=True) if n]
            outputs, weights = zip(*pairs, strict=True)
            found = iter(torch.autograd.grad(outputs, wanted, weights, create_graph=again, allow_unused=True))
            return None, *(next(found) if n else None for n in needed)

    return Computed


def compiled(program: fx.Graph) -> Callable[..., Any]:
    """The graph as a Python function of an object with its attributes, and its inputs."""
    code = bound(program).python_code("self")
    namespace = dict(code.globals)
    exec(code.src, namespace)
    return namespace["forward"]
