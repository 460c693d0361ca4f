"""What a captured graph relies on about its inputs' sizes, as expressions that can be read, checked and saved.

An expression names sizes as `x.shape[1]`, x being a placeholder of the graph: "x.shape[1] == 784". It means what Python
makes of it.
"""

import ast
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

MATH = (
    *("floor", "ceil", "trunc", "sqrt", "exp", "log", "log2"),
    *("cos", "cosh", "sin", "sinh", "tan", "tanh", "asin", "asinh", "acos", "atan"),
)
DENSE = "IsNonOverlappingAndDenseIndicator"


def _is_dense(*sizes_and_strides: Any) -> Any:
    from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

    function: Any = SYMPY_INTERP[DENSE]
    return function(*sizes_and_strides)


_FUNCTIONS: dict[str, Any] = {
    **{function.__name__: function for function in (abs, bool, float, int, max, min, round, Fraction)},
    **{name: getattr(math, name) for name in MATH},
    DENSE: _is_dense,
}
_SYNTAX = (
    ast.Expression,
    ast.BoolOp,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.IfExp,
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


def fixed(size: Any) -> int | None:
    """A size that is the same in every call; None for a free one."""
    return size if isinstance(size, int) else size.node.maybe_as_int()


def compile_condition(expression: str) -> Callable[[dict[str, Any]], bool]:
    """A function of {placeholder: tensor}: whether the condition holds; one without a value (1 % 0) does not.

    Only arithmetic on sizes is allowed, so that a file's text can be trusted: ValueError for anything else.
    """
    try:
        tree = ast.parse(expression, mode="eval")
    except SyntaxError as error:
        raise ValueError(f"condition: {expression!r} is not an expression") from error
    functions, owners = set(), set()  # the names that are called, and those that sizes belong to
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            functions.add(node.func)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owners.add(node.value)
    for node in ast.walk(tree):
        if not _is_allowed(node, functions, owners):
            raise ValueError(f"condition: {expression!r} is more than arithmetic on sizes")
    for name in functions:
        name.id = _global(name.id)
    code = compile(tree, "<condition>", "eval")

    def holds(tensors: dict[str, Any]) -> bool:
        try:
            return bool(eval(code, {"__builtins__": {}, **_GLOBALS}, tensors))
        except (ArithmeticError, ValueError):
            return False

    return holds


def _is_allowed(node: ast.AST, functions: set[ast.Name], owners: set[ast.Name]) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "shape" and isinstance(node.value, ast.Name)
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Attribute)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and not node.keywords
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float | bool)
    if isinstance(node, ast.Name):
        return node in owners or (node in functions and node.id in _FUNCTIONS)
    return isinstance(node, _SYNTAX)


def _global(function: str) -> str:
    """A name that no placeholder has: an input may be called `floor`."""
    return f"{function}()"


_GLOBALS = {_global(name): function for name, function in _FUNCTIONS.items()}
