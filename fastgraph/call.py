"""How a call of an `OptimizedModule` is computed. The order, in which the first that fits is taken:

1. Somebody has hooked in: as nn.Module does, whose __call__ comes back to the second (`OptimizedModule.__call__`).
2. A fast path takes the inputs, in native code (`OptimizedModule.forward`).
3. torch.compile or torch.export traces the call: `in_a_trace`.
4. Else a graph is selected for the inputs, or captured, and the first of `WAYS` whose condition holds computes it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.compiler import is_compiling
from torch.utils import _pytree as pytree

from fastgraph.kernels.fast_path import is_unobserved
from fastgraph.selection import Specializations
from fastgraph.structure import modes


class Call:
    """A call, the graph that was selected for it, and what conditions ask."""

    def __init__(self, graphs: Specializations, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.graphs, self.args, self.kwargs = graphs, args, kwargs
        self.chosen, self.tensors = graphs.select(args, kwargs)
        self.is_unobserved = is_unobserved()
        self._wants_grad: bool | None = None

    @property
    def wants_grad(self) -> bool:
        """Whether a result has to carry gradients."""
        if self._wants_grad is None:
            self._wants_grad = self.chosen.wants_grad(self.tensors)
        return self._wants_grad

    def result(self, results: Sequence[Any]) -> Any:
        """What the call returns, made of the graph's flattened results."""
        self.graphs.keep(self.chosen)
        out_spec = self.chosen.captured.out_spec
        if out_spec.is_leaf():
            return results[0]  # 1 us less
        return pytree.tree_unflatten(list(results), out_spec)


def compute(graphs: Specializations, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of a call that no fast path took."""
    if is_compiling():
        return in_a_trace(graphs, args, kwargs)
    call = Call(graphs, args, kwargs)
    for condition, way in WAYS:
        if condition(call):
            return way(call)
    raise AssertionError("the last condition always holds")


def in_a_trace(graphs: Specializations, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The graph with fused ops, or the original where there are several."""
    (chosen, *others) = graphs.all
    captured = chosen.captured
    if (others or captured.state or captured.custom_gradients) and not graphs.is_loaded:
        return graphs.model(*args, **kwargs)
    chosen.ready()
    leaves = pytree.tree_leaves(captured.signature.canonical(args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return pytree.tree_unflatten(list(chosen.rewritten.graph_module(*tensors)), captured.out_spec)


def needs_the_original(call: Call) -> bool:
    """The graph lacks what the model keeps from call to call, or the backward of an autograd.Function."""
    captured = call.chosen.captured
    return bool(captured.state or (captured.custom_gradients and call.wants_grad))


def by_the_original(call: Call) -> Any:
    """Eager, in the modes that the model was captured in."""
    graphs = call.graphs
    if graphs.is_loaded:
        captured = graphs.all[0].captured
        what = ", ".join([*captured.custom_gradients, *captured.state])
        raise RuntimeError(f"module: gradients of {what} are Python code, which a file does not hold")
    if all(graphs.training.get(m, m.training) == m.training for m in graphs.model.modules()):
        return graphs.model(*call.args, **call.kwargs)
    with graphs.lock, modes(graphs.model, graphs.training):
        return graphs.model(*call.args, **call.kwargs)


def is_transformed(call: Call) -> bool:
    """Under autocast, forward-mode differentiation or a transform of torch.func."""
    if call.is_unobserved:
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0:
        return True
    return any(
        torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        for device in {t.device.type for t in call.tensors}
    )


def by_the_captured_graph(call: Call) -> Any:
    """A transform, or autocast, decides operator by operator."""
    return call.result(call.chosen.captured.graph_module(*call.tensors))


def is_compiled(call: Call) -> bool:
    """There is a compiled graph; on CUDA it is for calls without gradients."""
    return call.chosen.compiled is not None and not (call.chosen.on_cuda and call.wants_grad)


def by_the_compiler(call: Call) -> Any:
    """By Inductor's code."""
    assert call.chosen.compiled is not None
    return call.result(call.chosen.compiled(*call.tensors))


def is_observed(call: Call) -> bool:
    """Somebody observes the operators: a mode, or the class of an input."""
    return not call.is_unobserved or any(type(t) not in (torch.Tensor, torch.nn.Parameter) for t in call.tensors)


def node_by_node(call: Call) -> Any:
    """Fused ops by name, through the dispatcher."""
    chosen = call.chosen
    rewritten = chosen.rewritten_with_gradients if call.wants_grad else chosen.rewritten
    return call.result(rewritten.graph_module(*call.tensors))


def wants_grad(call: Call) -> bool:
    """A result has to carry gradients."""
    return call.wants_grad


def with_gradients(call: Call) -> Any:
    """The program with gradients for inputs and parameters."""
    return call.result(call.chosen.program_with_gradients.run_with_gradients(*call.tensors))


def always(call: Call) -> bool:
    """Whatever is left."""
    return True


def without_gradients(call: Call) -> Any:
    """The program; calls like this one take its fast path from now on, if it has one."""
    chosen = call.chosen
    before = chosen.fast_path
    if torch.is_grad_enabled():
        with torch.no_grad():
            results = chosen.run_program(call.tensors)
    else:
        results = chosen.run_program(call.tensors)
    result = call.result(results)
    if chosen.fast_path is not before:
        call.graphs.renew_fast_paths()
    return result


WAYS: tuple[tuple[Callable[[Call], bool], Callable[[Call], Any]], ...] = (
    (needs_the_original, by_the_original),
    (is_transformed, by_the_captured_graph),
    (is_compiled, by_the_compiler),
    (is_observed, node_by_node),
    (wants_grad, with_gradients),
    (always, without_gradients),
)
