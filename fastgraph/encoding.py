"""Graphs, their arguments and the structures of inputs and outputs as JSON, and back without running any code.

A file's text is not to be trusted: names become part of generated code, so all are checked; functions are taken from a
table or are operators; no module is imported.
"""

import functools
import keyword
import math
import operator
import re
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

_PYTHON: dict[str, Callable[..., Any]] = {
    **{
        f"{module.__name__}.{name}": getattr(module, name)
        for module, names in (
            (operator, "abs add sub mul floordiv truediv mod pow neg pos eq ne lt le gt ge and_ or_ xor lshift rshift"),
            (operator, "getitem not_"),
            (math, "ceil floor trunc sqrt"),
            (torch, "sym_max sym_min sym_int sym_float sym_not sym_ite sym_sum sym_fresh_size sym_sqrt"),
            (torch, "_sym_sqrt _sym_cos _sym_cosh _sym_sin _sym_sinh _sym_tan _sym_tanh _sym_asin _sym_acos _sym_atan"),
            (torch, "_sym_log2 _check _check_is_size"),
            (torch.amp.autocast_mode, "_enter_autocast _exit_autocast"),
            (torch._C, "_set_grad_enabled"),
        )
        for name in names.split()
    },
    "round": round,
}
_NAMES = {function: name for name, function in _PYTHON.items()}
_TORCH_VALUES = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)
_FACTORIES = {factory.__name__: factory for factory in (bool, dict, float, int, list, set, str, tuple)}
_OPS = ("placeholder", "get_attr", "call_function", "output")
_NO_FILES = ("aten::from_file",)  # operators that read what the file's author chooses


def encode(value: Any) -> Any:
    """A node's argument, or other plain data. TypeError, naming the type, for what has no form in a file."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, list):
        return [encode(item) for item in value]
    for kind, (types, write, _) in _VALUES.items():
        if isinstance(value, types):
            return {kind: write(value)}
    raise TypeError(type(value).__name__)


def decode(value: Any, nodes: dict[str, fx.Node] | None = None) -> Any:
    """What `encode` was given; nodes by their names."""
    if isinstance(value, list):
        return [decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return (nodes or {})[content]
    if kind == "float":
        return float(content)
    return _VALUES[kind][2](content, lambda item: decode(item, nodes))


def _torch_value(name: str, _: Any) -> Any:
    value = getattr(torch, name)
    if not isinstance(value, _TORCH_VALUES):
        raise ValueError(f"{name} is no dtype, layout or memory format")
    return value


def _items(values: Any) -> list[Any]:
    return [encode(item) for item in values]


def _float_pair(content: Any, read: Callable[[Any], Any]) -> complex:
    return complex(*(read(part) for part in content))


# kind: (types, value -> JSON, (JSON, how to read what is inside) -> value); the first whose type fits is taken
_VALUES: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any, Callable[[Any], Any]], Any]]] = {
    "node": (fx.Node, lambda v: v.name, lambda c, read: read({"node": c})),
    "device": (torch.device, str, lambda c, read: torch.device(c)),
    "torch": (_TORCH_VALUES, lambda v: str(v).removeprefix("torch."), _torch_value),
    "size": (torch.Size, _items, lambda c, read: torch.Size(read(c))),
    "tuple": (tuple, _items, lambda c, read: tuple(read(c))),
    "dict": (dict, lambda v: _items(v.items()), lambda c, read: dict(read(c))),
    "slice": (slice, lambda v: _items((v.start, v.stop, v.step)), lambda c, read: slice(*read(c))),
    "range": (range, lambda v: [v.start, v.stop, v.step], lambda c, read: range(*c)),
    "complex": (complex, lambda v: _items((v.real, v.imag)), _float_pair),
    "bytes": (bytes, bytes.hex, lambda c, read: bytes.fromhex(c)),
    "ellipsis": (type(...), lambda v: None, lambda c, read: ...),
    "function": (torch._ops.OpOverload, lambda v: function_name(v), lambda c, read: function(c)),
}


def function_name(target: Any) -> str:
    """The name of what a node calls; TypeError where it is no operator and not in the table."""
    if isinstance(target, torch._ops.OpOverload) and target._schema.name not in _NO_FILES:
        return str(target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.name()}"
    if isinstance(target, Callable) and target in _NAMES:  # type: ignore[arg-type]
        return _NAMES[target]
    raise TypeError(str(target))


def function(name: str) -> Callable[..., Any]:
    """The function of that name; ValueError where there is none here."""
    if name in _PYTHON:
        return _PYTHON[name]
    found: Any = torch.ops
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except (AttributeError, RuntimeError):
        found = None
    operators = torch._ops.OpOverload | torch._ops.HigherOrderOperator
    if not isinstance(found, operators) or function_name(found) != name:
        raise ValueError(f"operator {name} is not known here; is the library that registers it imported?")
    return found


def encode_node(node: fx.Node, targets: dict[str, str]) -> dict[str, Any]:
    """A node; `targets` gives the file's names for the graph's attributes."""
    target: Any = node.target
    try:
        if node.op == "call_function":
            target = function_name(target)
        elif node.op == "get_attr":
            target = targets[target]
    except TypeError as error:
        raise ValueError(f"module: {node.name} calls {error}, which a file cannot hold") from error
    try:
        args, kwargs = encode(tuple(node.args)), encode(dict(node.kwargs))
    except TypeError as error:
        raise ValueError(f"module: {node.name} has an argument that a file cannot hold: {error}") from error
    return {"name": node.name, "op": node.op, "target": target, "args": args, "kwargs": kwargs}


def decode_nodes(encoded: list[dict[str, Any]]) -> fx.Graph:
    """The graph of these nodes."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for item in encoded:
        op, name, target = item["op"], item["name"], item["target"]
        if op not in _OPS:
            raise ValueError(f"{name}: {op} is no kind of node that a file has")
        check_name(name)
        if op == "placeholder":
            check_name(target)
        target = function(target) if op == "call_function" else target
        args, kwargs = decode(item["args"], nodes), decode(item["kwargs"], nodes)
        nodes[name] = graph.create_node(op, target, args, kwargs, name=name)
    return graph


def check_name(name: str, *, dotted: bool = False) -> None:
    """ValueError for what would not stay a name in generated code. Parts of dotted names need not be identifiers."""
    identifier = name.isidentifier() and not keyword.iskeyword(name)
    if not (identifier or (dotted and re.fullmatch(r"[^\"'\\\x00-\x1f]+", name))):
        raise ValueError(f"{name!r} is not a name")


def encode_tree(spec: pytree.TreeSpec) -> Any:
    """The structure of inputs or outputs; TypeError, naming the type, where a file cannot hold it."""
    if spec.is_leaf():
        return "*"
    kind, context, children = spec.type, spec.context, [encode_tree(child) for child in spec.children()]
    if kind in (tuple, list):
        return {kind.__name__: children}
    if kind in (dict, OrderedDict):
        return {kind.__name__: [[encode(key) for key in context], children]}
    if kind is defaultdict:
        factory, keys = context
        if factory is not None and _FACTORIES.get(factory.__name__) is not factory:
            raise TypeError(f"defaultdict of {factory}")
        return {"defaultdict": [factory and factory.__name__, [encode(key) for key in keys], children]}
    if kind is deque:
        return {"deque": [context, children]}
    if kind is namedtuple:
        return {"namedtuple": [context.__name__, list(context._fields), children]}
    if kind in torch.return_types.all_return_types:
        return {"return_type": [kind.__name__, children]}
    return {"registered": [_qualified(kind), encode(context), children]}


def decode_tree(encoded: Any) -> pytree.TreeSpec:
    """What `encode_tree` was given. Types of the user's are built anew, or found where this process registered them."""
    if encoded == "*":
        return pytree.treespec_leaf()
    ((kind, content),) = encoded.items()
    children = [decode_tree(child) for child in (content if kind in ("tuple", "list") else content[-1])]
    types: dict[str, Any] = {"tuple": tuple, "list": list, "dict": dict, "OrderedDict": OrderedDict}
    if kind in types:
        return pytree.TreeSpec(types[kind], None if kind in ("tuple", "list") else decode(content[0]), children)
    if kind == "defaultdict":
        factory = None if content[0] is None else _FACTORIES[content[0]]
        return pytree.TreeSpec(defaultdict, [factory, decode(content[1])], children)
    if kind == "deque":
        return pytree.TreeSpec(deque, content[0], children)
    if kind == "namedtuple":
        return pytree.TreeSpec(namedtuple, _namedtuple(content[0], tuple(content[1])), children)
    if kind == "return_type":
        (found,) = [t for t in torch.return_types.all_return_types if t.__name__ == content[0]]
        return pytree.TreeSpec(found, None, children)
    return pytree.TreeSpec(_registered(content[0]), decode(content[1]), children)


class _Named(type):
    """Equal to every namedtuple of its name and fields: callers pass that of the saved module's own code."""

    def __eq__(cls, other: object) -> bool:
        fields = getattr(other, "_fields", None)
        return isinstance(other, type) and (cls.__name__, cls._fields) == (other.__name__, fields)

    def __hash__(cls) -> int:
        return hash((cls.__name__, cls._fields))

    _fields: tuple[str, ...]


@functools.cache
def _namedtuple(name: str, fields: tuple[str, ...]) -> type:
    return _Named(name, (namedtuple(name, fields),), {"__slots__": ()})


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _registered(name: str) -> type:
    for kind in pytree.SUPPORTED_NODES:
        if isinstance(kind, type) and _qualified(kind) == name:
            return kind
    raise ValueError(f"type {name} is not known here; import the module that registers it with torch's pytrees first")
