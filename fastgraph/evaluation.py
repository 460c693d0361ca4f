"""Runs a captured graph in its own dtype or another, on copies of everything that it writes."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fastgraph.aliases import Aliases, argument
from fastgraph.sums import Sums

aten = torch.ops.aten

ROUNDINGS = 4
_REALS = (torch.float16, torch.bfloat16, torch.float32)
_COMPLEX = (torch.complex32, torch.complex64)


class UnsupportedError(Exception):
    """Why a graph cannot be run in another dtype."""


def in_dtype(own: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """What takes the place of a tensor's own dtype where a model computes in `dtype`."""
    if dtype is not None and own in (*_REALS, torch.float64):
        return dtype
    return torch.complex128 if dtype is torch.float64 and own in _COMPLEX else own


class Copies:
    """Copies of tensors that share memory and have strides as the originals do; of each storage only what is used."""

    def __init__(self, tensors: Iterable[torch.Tensor], dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype
        self._ranges: dict[Any, tuple[int, int]] = {}  # of elements, by storage
        self._storages: dict[Any, torch.Tensor] = {}
        for tensor in tensors:
            if _is_simple(tensor):
                start, end = _extent(tensor)
                first, last = self._ranges.get(_storage(tensor), (start, end))
                self._ranges[_storage(tensor)] = min(start, first), max(end, last)

    def __call__(self, value: Any) -> Any:
        """The copy of a tensor; anything else as it is."""
        if not isinstance(value, torch.Tensor):
            return value
        dtype = in_dtype(value.dtype, self._dtype)
        if _storage(value) not in self._ranges:
            return value.detach().clone().to(dtype)
        start, end = self._ranges[_storage(value)]
        if _storage(value) not in self._storages:
            whole = value.detach().as_strided((end - start,), (1,), start)
            self._storages[_storage(value)] = whole.clone().to(dtype)
        copy = self._storages[_storage(value)].as_strided(value.shape, value.stride(), value.storage_offset() - start)
        return copy.requires_grad_() if value.requires_grad and copy.dtype == value.dtype else copy


def _is_simple(tensor: torch.Tensor) -> bool:
    """Whether the tensor is nothing but elements of a storage."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    return plain and not (tensor.is_conj() or tensor.is_neg() or tensor._is_zerotensor())


def _storage(tensor: torch.Tensor) -> Any:
    return (tensor.untyped_storage()._cdata, tensor.dtype) if _is_simple(tensor) else None


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    start = int(tensor.storage_offset())
    span = sum((int(size) - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (span + 1 if tensor.numel() else 0)


def written_tensors(graph_module: fx.GraphModule) -> dict[str, torch.Tensor]:
    """The module's own tensors that its graph writes to, through any alias, by name."""
    graph = graph_module.graph
    aliases = Aliases(graph)
    names = [str(node.target) for node in graph.find_nodes(op="get_attr") if aliases.writers(node)]
    attributes = {name: operator.attrgetter(name)(graph_module) for name in names}
    return {name: value for name, value in attributes.items() if isinstance(value, torch.Tensor)}


def random_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Nodes that draw random numbers: neither dropout in eval mode nor attention or recurrent layers without it."""
    return [node for node in graph.nodes if node.op == "call_function" and _is_random(node)]


def _is_random(node: fx.Node) -> bool:
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    names = {formal.name for formal in node.target._schema.arguments}  # type: ignore[union-attr]
    switches = [name for name in ("train", "training") if name in names]
    chances = [name for name in ("dropout_p", "dropout") if name in names]
    if switches and "p" in names:
        chances.append("p")
    return all(argument(node, name) not in (False, 0, 0.0, None) for name in [*switches, *chances])


class Evaluator(fx.Interpreter):
    """Runs a graph and those nested in it.

    dtype: what takes the place of every floating dtype in it, of complex64 for float64; None: nothing. Its random
    numbers are drawn in their own dtype, so that they are the same. copies: of the module's tensors that it writes.
    """

    def __init__(
        self, graph_module: fx.GraphModule, dtype: torch.dtype | None, copies: Copies | None, sums: Sums | None = None
    ) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False
        self._dtype, self._copies, self._sums = dtype, copies, sums
        self._written = set(written_tensors(graph_module))
        self._node: Any = None

    def run_node(self, node: fx.Node) -> Any:
        """The node's value; `UnsupportedError` where its operator does not run in the dtype."""
        self._node = node
        try:
            result = super().run_node(node)
        except UnsupportedError:
            raise
        except Exception as error:
            if self._dtype is None:
                raise
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            kind = str(self._dtype).removeprefix("torch.")
            raise UnsupportedError(f"{node.name} ({node.target}) does not run in {kind}: {cause}") from error
        if self._sums is not None:
            self._sums.record(node, self.env)
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A tensor in the dtype, a copy where the graph writes to it; a nested graph as a function."""
        value = operator.attrgetter(target)(self.module)
        if isinstance(value, fx.GraphModule):
            return Evaluator(value, self._dtype, None).run
        if not isinstance(value, torch.Tensor):
            return value
        if target in self._written:
            return value.detach().clone() if self._copies is None else self._copies(value).detach()
        return value.detach().to(in_dtype(value.dtype, self._dtype))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The operator's result, in the dtype."""
        if self._dtype is None or not isinstance(target, torch._ops.OpOverload):
            return target(*args, **kwargs)
        if _is_random(self._node):
            return self._draw(target, args, kwargs)
        if target is aten.view.dtype and in_dtype(args[1], self._dtype) is not in_dtype(args[0].dtype, self._dtype):
            raise UnsupportedError(f"{self._node.name} reads the bits of its input, which are others in float64")
        convert = lambda v: in_dtype(v, self._dtype) if isinstance(v, torch.dtype) else v  # noqa: E731
        args, kwargs = pytree.tree_map(convert, (args, kwargs))
        return self._converted(target(*args, **kwargs))

    def _converted(self, result: Any) -> Any:
        return pytree.tree_map_only(torch.Tensor, lambda t: t.to(in_dtype(t.dtype, self._dtype)), result)

    def _draw(self, target: Any, args: Any, kwargs: Any) -> Any:
        """What the operator draws in the graph's own dtype, in the dtype here."""
        given = [n for n in self._node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        dtypes = {id(self.env[n]): n.meta["val"].dtype for n in given}
        narrow = lambda t: t.to(dtypes.get(id(t), t.dtype))  # noqa: E731
        narrow_args, narrow_kwargs = pytree.tree_map_only(torch.Tensor, narrow, (args, kwargs))
        result = target(*narrow_args, **narrow_kwargs)
        if target._schema.is_mutable:  # x.uniform_(): the memory is that of the first argument
            return args[0].copy_(result)
        return self._converted(result)


class Shaken(Evaluator):
    """Computes in float64 with roundings to another dtype drawn at random: of operators' arguments and results.

    eps is the unit in the last place of 1 in that dtype. An operator may round `ROUNDINGS` times: one of several steps,
    such as cosine_similarity, is off by so many halves of it. (Monte Carlo arithmetic: D. S. Parker, UCLA CSD-970002.)
    """

    def __init__(self, graph_module: fx.GraphModule, copies: Copies | None, eps: float) -> None:
        super().__init__(graph_module, torch.float64, copies)
        self._eps = eps

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The operator's result, rounded at random; what is a view, is written in place or drawn is left as it is."""
        if not isinstance(target, torch._ops.OpOverload) or _shares_memory(target) or _is_random(self._node):
            return super().call_function(target, args, kwargs)
        args, kwargs = pytree.tree_map_only(torch.Tensor, self._round, (args, kwargs))
        return pytree.tree_map_only(torch.Tensor, self._round, super().call_function(target, args, kwargs))

    def _round(self, value: torch.Tensor) -> torch.Tensor:
        if not (value.is_floating_point() or value.is_complex()):
            return value
        return value * (1 + ROUNDINGS * self._eps * (torch.rand(value.shape, dtype=torch.float64) - 0.5))


def _shares_memory(target: torch._ops.OpOverload) -> bool:
    return target._schema.is_mutable or any(result.alias_info is not None for result in target._schema.returns)


def evaluate(
    graph_module: fx.GraphModule,
    flat: Sequence[Any],
    dtype: torch.dtype | None,
    sums: Sums | None = None,
) -> tuple[list[Any], list[Any], dict[str, torch.Tensor]]:
    """(outputs, inputs afterwards, the module's written tensors afterwards), all of them copies."""
    state, copies = _copies(graph_module, flat, dtype)
    return _run(Evaluator(graph_module, dtype, copies, sums), flat, state, copies)


def shaken(
    graph_module: fx.GraphModule, flat: Sequence[Any], eps: float
) -> tuple[list[Any], list[Any], dict[str, torch.Tensor]]:
    """The same in float64 with roundings drawn at random, see `Shaken`."""
    state, copies = _copies(graph_module, flat, torch.float64)
    return _run(Shaken(graph_module, copies, eps), flat, state, copies)


def _copies(
    graph_module: fx.GraphModule, flat: Sequence[Any], dtype: torch.dtype | None
) -> tuple[dict[str, torch.Tensor], Copies]:
    state = written_tensors(graph_module)
    return state, Copies([v for v in (*flat, *state.values()) if isinstance(v, torch.Tensor)], dtype)


def _run(
    evaluator: Evaluator, flat: Sequence[Any], state: dict[str, torch.Tensor], copies: Copies
) -> tuple[list[Any], list[Any], dict[str, torch.Tensor]]:
    inputs = [copies(value) for value in flat]
    with torch.no_grad():
        outputs = pytree.tree_leaves(evaluator.run(*(_detached(v) for v in inputs)))
    return outputs, inputs, {name: copies(tensor) for name, tensor in state.items()}


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


@contextmanager
def restored(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Gives the tensors their values and version counters back."""
    saved = [tensor.detach().clone() for tensor in tensors]
    counted = tuple(tensor for tensor in tensors if not tensor.is_inference())
    with torch.autograd._unsafe_preserve_version_counter(counted):
        try:
            yield
        finally:
            for tensor, values in zip(tensors, saved, strict=True):
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():  # the former sets the latter
                    tensor.copy_(values)
