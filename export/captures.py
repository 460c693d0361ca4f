"""The graphs of a model that an ONNX file is written from and compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import fastgraph
from fastgraph import verify as numbers
from fastgraph.capture import capture
from fastgraph.captured import Captured, check_inputs, flatten_inputs
from fastgraph.conditions import fixed
from fastgraph.evaluation import Copies, restored
from fastgraph.export.standard import NO_STATE
from fastgraph.export.trials import places, resized, rows
from fastgraph.guards import Inexpressible, express
from fastgraph.tracing import attributes_kept

OTHER_SIZES = (1, 2, 3)  # and the neighbours of the example's, and twice that


class SizesError(RuntimeError):
    """A file would be wrong for sizes that it declares free.

    ``axes``: the (tensor, axis) to be fixed for that. First ones are a batch: nobody asks for a file for one alone.
    """

    def __init__(self, message: str, axes: Iterable[tuple[int, int]]) -> None:
        super().__init__(message)
        self.axes = frozenset(place for place in axes if place[1] > 0)


@dataclass(frozen=True)
class Attempt:
    """A graph to write, the example's tensors, those that the graph is traced with, and axes that may not be free."""

    captured: Captured
    flat: list[Tensor]
    traced: list[Tensor]
    fixed: frozenset[tuple[int, int]] = frozenset()

    def fixing(self, axes: Iterable[tuple[int, int]]) -> Attempt:
        """The same with fewer free axes."""
        return replace(self, fixed=self.fixed.union(axes))

    def free_axes(self) -> list[dict[int, Any]]:
        """torch.export's dynamic shapes for every tensor: the axes that are no longer free are those of which the graph
        takes no other size, whatever torch.export makes of the operators alone.

        A graph that was captured where an axis is 1 may hold for that size only: a branch of the model, a layer
        that is written out step by step.
        """
        axes = places([[_symbol(size) for size in node.meta["val"].shape] for node in self.captured.placeholders])
        free = {name for name in axes if any(self._takes({name: axes[name]}, size) for size in self._sizes(axes[name]))}
        if self._takes(axes, None):  # sizes that change together alone: one twice the other
            free = set(axes)
        taken = {place for name in free if not self.fixed.intersection(axes[name]) for place in axes[name]}
        automatic = torch.export.Dim.AUTO
        return [
            {axis: automatic if (position, axis) in taken else None for axis in range(tensor.dim())}
            for position, tensor in enumerate(self.traced)
        ]

    def _sizes(self, axes: Sequence[tuple[int, int]]) -> list[int]:
        position, axis = axes[0]
        own = int(self.traced[position].shape[axis])
        return [size for size in (own + 1, own - 1, 2 * own, *OTHER_SIZES) if size > 0 and size != own]

    def _takes(self, axes: Mapping[str, Sequence[tuple[int, int]]], size: int | None) -> bool:
        """Whether the graph takes these axes in another size, or twice as long."""
        made = list(self.traced)
        for position, axis in (place for every in axes.values() for place in every):
            made[position] = resized(made[position], axis, size or 2 * made[position].shape[axis])
        return fits(self.captured, made)


def _symbol(size: Any) -> Any:
    """What sizes that are always the same have in common; a number for a fixed one."""
    number = fixed(size)
    return str(size.node.expr) if number is None else number


@dataclass
class Model:
    """A model, plain or loaded, the example's arguments, and the graphs that were captured so far."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    captures: list[Captured] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.is_loaded:
            self.captures = [specialization.captured for specialization in self.model.specializations]  # type: ignore[union-attr]

    @property
    def is_loaded(self) -> bool:
        """Whether the graphs in a file are all that there is of the model."""
        return isinstance(self.model, fastgraph.OptimizedModule)

    def attempts(self, *, verified: bool) -> Iterator[Attempt]:
        """Graphs to write, the best first: one that was captured with two rows where the example has one or none.

        Models choose their way by such sizes, and what holds for two rows holds for more. Where it does not take the
        example it is a candidate only if the file is `verified`; then comes the example's own graph.
        """
        if self.is_loaded:
            yield self._attempt(self._own(), _two_rows(self.args, self.kwargs))
            return
        if (wide := _two_rows(self.args, self.kwargs)) is not None:
            attempt = None
            with suppress(RuntimeError):
                attempt = self._attempt(self._captured(*wide), wide)
            fitting = attempt is not None and fits(attempt.captured, attempt.flat)
            if attempt is not None and (fitting or verified):
                yield attempt
            if fitting:
                return
        yield self._attempt(self._captured(self.args, self.kwargs), wide)

    def graph_for(self, captured: Captured, flat: Sequence[Any]) -> Captured | None:
        """The graph that says what the model computes of these tensors; None where eager, or a loaded module, does not
        take them.

        Args:
            captured: the first to ask; it says which of the arguments the tensors are.
            flat: the tensors among the arguments.
        """
        fitting = next((one for one in (captured, *self.captures) if fits(one, flat)), None)
        if fitting is not None:
            return fitting if _computes(fitting, flat) else None
        args, kwargs = _call(captured, flat)
        return self._captured(args, kwargs) if not self.is_loaded and self._takes(args, kwargs) else None

    def _takes(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether eager takes the call. Model and inputs stay as they are."""
        copies = Copies(tensor for tensor in pytree.tree_leaves((args, kwargs)) if isinstance(tensor, Tensor))
        args, kwargs = pytree.tree_map(copies, (args, kwargs))
        buffers = [buffer for buffer in self.model.buffers() if buffer.layout is torch.strided]
        with torch.no_grad(), attributes_kept(self.model), restored(buffers):
            try:
                self.model(*args, **kwargs)
            except Exception:
                return False
        return True

    def _captured(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Captured:
        self.captures.append(capture(self.model, args, kwargs))
        return self.captures[-1]

    def _own(self) -> Captured:
        """A loaded module's graph for the example, or for what is nearest to it."""
        graphs = (one for one in self.captures if fits(one, flatten_inputs(one, self.args, self.kwargs)))
        return next(graphs, self.captures[0])

    def _attempt(self, captured: Captured, wide: Any) -> Attempt:
        if captured.state:
            raise RuntimeError(f"to_onnx: model keeps {captured.state[0]!r} for its next call: {NO_STATE}")
        flat = flatten_inputs(captured, self.args, self.kwargs)
        traced = flatten_inputs(captured, *wide) if wide is not None else flat
        if not fits(captured, traced):
            traced = flat
        empty = any(tensor.dim() and not tensor.shape[0] for tensor in flat)
        return Attempt(captured, traced if empty else flat, traced)


def _computes(captured: Captured, flat: Sequence[Any]) -> bool:
    """Whether the graph, which takes these sizes, takes the values."""
    try:
        return numbers.run(captured, list(flat), None) is not None
    except Exception:
        return False


def _call(captured: Captured, flat: Sequence[Any]) -> Any:
    """(args, kwargs) with these tensors."""
    tensors, count = iter(flat), captured.in_spec.num_leaves
    leaves = [captured.constants[i] if i in captured.constants else next(tensors) for i in range(count)]
    return pytree.tree_unflatten(leaves, captured.in_spec)


def _two_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The call with two rows in every tensor; None where the tensors have no first size in common, or a larger one."""
    flat, spec = pytree.tree_flatten((args, kwargs))
    firsts = {leaf.shape[0] if leaf.dim() else None for leaf in flat if isinstance(leaf, Tensor)}
    return pytree.tree_unflatten(rows(flat, 2), spec) if firsts in ({0}, {1}) else None


def fits(captured: Captured, flat: Sequence[Any]) -> bool:
    """Whether the captured graph takes these sizes."""
    return refusal(captured, flat) is None


def refusal(captured: Captured, flat: Sequence[Any]) -> Exception | None:
    """Why the captured graph does not take these tensors."""
    try:
        check_inputs(captured, flat)
    except (RuntimeError, TypeError) as error:
        return error
    return None


def guards(program: torch.export.ExportedProgram) -> list[Any]:
    """What the program relies on about sizes, in the order in which it came up."""
    sizes = (size for node in _inputs(program) for size in node.meta["val"].shape)
    env: Any = next((size.node.shape_env for size in sizes if isinstance(size, torch.SymInt)), None)
    return [] if env is None else list(env.guards)


def check_guards(program: torch.export.ExportedProgram, captured: Captured, added: Sequence[Any], name: str) -> None:
    """SizesError where one of the guards holds for some sizes of an axis only: ``x.shape[2] // 2 == 4``."""
    names: dict[str, str] = {}
    symbols: dict[Any, list[tuple[int, int]]] = {}
    for position, (node, placeholder) in enumerate(zip(_inputs(program), captured.placeholders, strict=True)):
        for axis, size in enumerate(node.meta["val"].shape):
            if isinstance(size, torch.SymInt):
                names.setdefault(str(size.node.expr), f"{placeholder.target}.shape[{axis}]")
                for symbol in size.node.expr.free_symbols:
                    symbols.setdefault(symbol, []).append((position, axis))
    if equal := [guard.expr for guard in added if isinstance(guard.expr, sympy.Eq)]:
        texts = " and ".join(_written(expression, names) for expression in equal)
        about = set().union(*(expression.free_symbols for expression in equal))
        message = f"to_onnx: torch.onnx's translation of {name} holds only where {texts}, which no file can say"
        raise SizesError(message, (place for symbol in about for place in symbols.get(symbol, ())))


def _written(expression: Any, names: dict[str, str]) -> str:
    try:
        return express(expression, names)
    except Inexpressible:
        return str(expression)


def _inputs(program: torch.export.ExportedProgram) -> list[fx.Node]:
    given = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.find_nodes(op="placeholder") if node.name in given]
