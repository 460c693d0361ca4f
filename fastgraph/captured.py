"""A captured graph, and the class of calls that it holds for."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fastgraph.arguments import Signature, constant_key
from fastgraph.conditions import compile_condition, fixed
from fastgraph.lazy import Later


@dataclass(frozen=True)
class Input:
    """What is needed of one tensor among the inputs."""

    name: str
    dtype: torch.dtype
    device: torch.device
    layout: torch.layout
    sizes: tuple[int | None, ...]  # None for a free one

    @classmethod
    def of(cls, placeholder: fx.Node) -> "Input":
        """By what the capture recorded for it."""
        value = placeholder.meta["val"]
        return cls(str(placeholder.target), value.dtype, value.device, value.layout, tuple(map(fixed, value.shape)))


@dataclass(frozen=True)
class Outline:
    """What a file tells of a captured graph without symbolic sizes, which take longer than all else to be made."""

    inputs: list[Input]
    nodes: list[fx.Node]  # with no values
    # What the rules made of it, with values of the right kinds (see `fastgraph.kinds`) but without sizes.
    rewritten: fx.Graph
    with_gradients: fx.Graph | None  # the same for calls with gradients, where it has regions without


@dataclass
class Captured:
    """A module's graph, and the class of calls that it holds for.

    Placeholders are the tensors among the flattened inputs, the output is the tuple of flattened outputs.
    `graph_module` holds the module's own parameters and buffers under their own names.
    """

    graph_module: fx.GraphModule  # or a function that makes it, which is called when somebody asks
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
    outline: Outline | None = field(default=None, repr=False, metadata={"saved": False})

    @property
    def graph(self) -> fx.Graph:
        """The graph of ATen operators."""
        return self.graph_module.graph

    @property
    def placeholders(self) -> list[fx.Node]:
        """One node per tensor among the flattened inputs."""
        return list(self.graph.find_nodes(op="placeholder"))

    @property
    def nodes(self) -> list[fx.Node]:
        """Those of the graph, perhaps without their values."""
        return list(self.graph.nodes) if self.outline is None else self.outline.nodes

    @cached_property
    def inputs(self) -> list[Input]:
        """What is needed of the tensors among the flattened inputs."""
        return [Input.of(node) for node in self.placeholders] if self.outline is None else self.outline.inputs

    @property
    def is_outline(self) -> bool:
        """Whether nobody has asked for the graph yet."""
        value = self.__dict__["graph_module"]
        return isinstance(value, Later) and not value.is_made

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
        named = {input.name: value for input, value in zip(self.inputs, tensors, strict=True)}
        for input, value in zip(self.inputs, tensors, strict=True):
            if not isinstance(value, torch.Tensor):
                return TypeError(f"{input.name}: needs a tensor, got {type(value).__name__}")
            if reason := _mismatch(input, value):
                return RuntimeError(f"{input.name}: needs {reason}")
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
        sizes = [(input.name, axis, n) for input in self.inputs for axis, n in enumerate(input.sizes)]
        return [(name, axis, n) for name, axis, n in sizes if n is not None]

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
        pairs = zip(self.inputs, other.inputs, strict=False)
        return found + [f"{mine.name} of {mine.dtype}" for mine, theirs in pairs if mine.dtype != theirs.dtype]

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


class _Made:
    """`Captured.graph_module`, once `dataclass` has read the fields."""

    def __get__(self, captured: Any, owner: type | None = None) -> fx.GraphModule:
        if captured is None:
            raise AttributeError("graph_module")
        value: Later[fx.GraphModule] | fx.GraphModule = captured.__dict__["graph_module"]
        return value.get() if isinstance(value, Later) else value

    def __set__(self, captured: Any, value: fx.GraphModule | Callable[[], fx.GraphModule]) -> None:
        captured.__dict__["graph_module"] = value if isinstance(value, fx.GraphModule) else Later(value)


Captured.graph_module = _Made()  # type: ignore[assignment]


def _hint(size: Any) -> int:
    """A size in the example."""
    return size if isinstance(size, int) else int(size.node.hint)


def grad_facts(tensors: Sequence[torch.Tensor]) -> tuple[bool, ...]:
    """Grad mode, and what of the inputs requires gradients."""
    return torch.is_grad_enabled(), *(t.requires_grad for t in tensors)


def _mismatch(expected: Input, value: torch.Tensor) -> str | None:
    """What is needed of an input and what came, apart from its sizes."""
    if value.dim() != len(expected.sizes):
        return f"a tensor of {len(expected.sizes)} dimensions, {_written(expected.sizes)}, got {list(value.shape)}"
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
    return _written([fixed(size) for size in tensor.shape])


def _written(numbers: Sequence[int | None]) -> str:
    return "[" + ", ".join("*" if n is None else str(n) for n in numbers) + "]"


def read_from(model: nn.Module, graph_module: fx.GraphModule) -> fx.GraphModule:
    """`graph_module`, reading parameters and buffers from the model's own dictionaries, so that a new one is seen.

    `model` is the module that was captured, or a graph of it.
    """
    for path, module in list(graph_module.named_modules()):
        own = None if isinstance(module, fx.GraphModule) and path else submodule(model, path)
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


def submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
