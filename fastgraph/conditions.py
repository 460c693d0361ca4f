"""What a captured graph relies on about its inputs' sizes, as expressions that can be read, checked and saved.

An expression names sizes as `x.shape[1]`, x being a placeholder of the graph: "x.shape[1] == 784".
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP
from torch.utils._sympy.numbers import int_oo

_FUNCTIONS: dict[str, Any] = {
    **{name: function for name, function in SYMPY_INTERP.items() if name.isidentifier()},
    "Eq": operator.eq,
    "Ne": operator.ne,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "Max": max,
    "Min": min,
}
_SYNTAX = (
    ast.Expression,
    ast.BoolOp,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.Call,
    ast.Constant,
    ast.Name,
    ast.Load,
    ast.Attribute,
    ast.Subscript,
    ast.boolop,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
)


def conditions(placeholders: Sequence[fx.Node]) -> list[str]:
    """The expressions that torch.export's capture relied on, by the placeholders' recorded sizes and guards."""
    found: list[str] = []
    names: dict[str, str] = {}  # symbol -> the first size that has it
    shape_env = None
    for node in placeholders:
        tensor = node.meta.get("val")
        if not isinstance(tensor, torch.Tensor):
            continue
        for axis, size in enumerate(tensor.shape):
            name = f"{node.name}.shape[{axis}]"
            fixed = size if isinstance(size, int) else size.node.maybe_as_int()
            if fixed is not None:
                found.append(f"{name} == {fixed}")
                continue
            shape_env, expression = size.node.shape_env, size.node.expr
            if expression.is_symbol and str(expression) not in names:
                names[str(expression)] = name
                found += _bounds(name, shape_env.var_to_range[expression])
            elif translated := _translate(str(expression), names):
                found.append(f"{name} == {translated}")
    if shape_env is not None:
        found += [
            t for g in shape_env.guards if (t := _translate(str(shape_env.replace(g.expr)), names)) and t != "True"
        ]
    return list(dict.fromkeys(found))


def _bounds(name: str, bounds: Any) -> Iterator[str]:
    if bounds.lower > 0:
        yield f"{name} >= {int(bounds.lower)}"
    if bounds.upper < int_oo and int(bounds.upper) < 2**62:
        yield f"{name} <= {int(bounds.upper)}"


def _translate(expression: str, names: dict[str, str]) -> str | None:
    """Symbols to sizes; None where one is no size of an input (the graph then asserts for itself)."""
    symbols = set(re.findall(r"\b[su]\d+\b", expression))
    if not symbols <= names.keys():
        return None
    return re.sub(r"\b[su]\d+\b", lambda m: names[m.group()], expression)


def compile_condition(expression: str) -> Callable[[dict[str, Any]], bool]:
    """A function of {placeholder: tensor}. Only arithmetic on sizes is allowed, so that a file's text can be trusted:
    ValueError for anything else."""
    try:
        tree = ast.parse(expression, mode="eval")
    except SyntaxError as error:
        raise ValueError(f"condition: {expression!r} is not an expression") from error
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        allowed = isinstance(node, _SYNTAX)
        if isinstance(node, ast.Attribute):
            allowed = node.attr == "shape" and isinstance(node.value, ast.Name)
        elif isinstance(node, ast.Subscript):
            allowed = isinstance(node.value, ast.Attribute)
        elif isinstance(node, ast.Call):
            allowed = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
        elif isinstance(node, ast.Constant):
            allowed = isinstance(node.value, int | float | bool)
        elif isinstance(node, ast.Name):
            allowed = id(node) in called or node.id not in _FUNCTIONS
        if not allowed:
            raise ValueError(f"condition: {expression!r} is more than arithmetic on sizes")
    code = compile(tree, "<condition>", "eval")
    return lambda tensors: bool(eval(code, {"__builtins__": {}, **_FUNCTIONS}, tensors))
