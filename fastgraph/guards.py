"""From the guards of torch.export's capture, sympy expressions, to the conditions that `fastgraph.conditions` checks.

To import sympy takes longest of all: who only checks conditions does without.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from sympy.printing.precedence import PRECEDENCE  # type: ignore[import-untyped]
from torch import fx
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.printers import PythonPrinter

from fastgraph.conditions import DENSE, MATH, compile_condition, fixed

# torch's name of a function of sizes -> the function here
_CALLS = {
    **{f"OpaqueUnaryFn_{name}": name for name in MATH},
    "CeilToInt": "ceil",
    "FloorToInt": "floor",
    "RoundToInt": "round",
    "TruncToInt": "trunc",
    "ToFloat": "float",
    "ceiling": "ceil",
    "floor": "floor",
    "RoundDecimal": "round",
    "Abs": "abs",
    "Max": "max",
    "Min": "min",
    DENSE: DENSE,
}


class Inexpressible(Exception):
    """An expression that has no form here, or with a symbol that is no size of an input."""


class _Printer(PythonPrinter):
    """A sympy expression over sizes as Python, without modules: floor(float(x.shape[1]) * 0.5)."""

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__()
        self._names = names

    def _print_Symbol(self, expr: sympy.Symbol) -> str:
        if expr.name not in self._names:
            raise Inexpressible(expr.name)
        return self._names[expr.name]

    def _print_Function(self, expr: sympy.Function) -> str:
        name = type(expr).__name__
        if name not in _CALLS:
            raise Inexpressible(name)
        return f"{_CALLS[name]}({', '.join(map(self._print, expr.args))})"

    # The printer that this one extends has these as calls into math and torch.
    for _name in _CALLS:
        locals()[f"_print_{_name}"] = _print_Function

    def _print_TruncToFloat(self, expr: sympy.Function) -> str:
        return f"float(trunc({self._print(expr.args[0])}))"

    def _print_Float(self, expr: sympy.Float) -> str:
        return repr(float(expr))

    def _print_Rational(self, expr: sympy.Rational) -> str:
        return f"Fraction({expr.p}, {expr.q})"  # exact, however large the sizes are

    _print_Half = _print_Rational

    def _print_Add(self, expr: sympy.Add, order: str | None = None) -> str:
        terms = list(expr.args)
        if terms[0].is_Number:
            terms.append(terms.pop(0))
        text = self.parenthesize(terms[0], PRECEDENCE["Add"])
        for term in terms[1:]:
            sign, term = (" - ", -term) if term.as_coeff_Mul()[0].is_negative else (" + ", term)
            text += sign + self.parenthesize(term, PRECEDENCE["Add"])
        return text

    def _print_Mul(self, expr: sympy.Mul) -> str:
        factors = [self.parenthesize(factor, PRECEDENCE["Mul"]) for factor in expr.args]
        if isinstance(expr.args[0], sympy.Rational):  # one integer or fraction, which stands first
            factors[0] = self._print(expr.args[0])
        return "*".join(factors) if factors[0] != "-1" else "-" + "*".join(factors[1:])

    def _print_Relational(self, expr: sympy.Rel) -> str:
        return self.stringify(expr.args, f" {expr.rel_op} ", PRECEDENCE["Relational"])

    def _print_Pow(self, expr: sympy.Pow) -> str:
        base, exponent = expr.args
        if not isinstance(exponent, sympy.Integer):
            raise Inexpressible(str(expr))
        if exponent < 0:
            return f"Fraction(1, {self._print(sympy.Pow(base, -exponent))})"
        return f"{self.parenthesize(base, PRECEDENCE['Atom'] - 0.5)} ** {exponent}"

    def _print_FloatTrueDiv(self, expr: sympy.Function) -> str:
        # Python's division of two integers rounds once; this one makes them floats before.
        base, divisor = (
            f"float({self._print(arg)})" if arg.is_integer else self.parenthesize(arg, PRECEDENCE["Atom"] - 0.5)
            for arg in expr.args
        )
        return f"{base} / {divisor}"

    def _print_IntTrueDiv(self, expr: sympy.Function) -> str:
        return self.stringify(expr.args, " / ", PRECEDENCE["Atom"] - 0.5)

    def _print_Not(self, expr: sympy.Not) -> str:
        return f"(not ({self._print(expr.args[0])}))"

    def _print_Xor(self, expr: sympy.Xor) -> str:
        first, *others = (f"bool({self._print(arg)})" for arg in expr.args)
        return functools.reduce(lambda text, other: f"({text} != {other})", others, first)

    def _print_Piecewise(self, expr: sympy.Piecewise) -> str:
        *cases, (last, condition) = expr.args
        if condition != True:  # noqa: E712
            raise Inexpressible(str(expr))  # without a value where none of its conditions holds
        text = self._print(last)
        for value, condition in reversed(cases):
            text = self._choice(condition, self._print(value), text)
        return text

    def _print_Where(self, expr: sympy.Function) -> str:
        condition, first, second = expr.args
        return self._choice(condition, self._print(first), self._print(second))

    _print_ITE = _print_Where

    def _choice(self, condition: sympy.Basic, first: str, second: str) -> str:
        return f"({first} if {self._print(condition)} else {second})"

    def _refuse(self, expr: sympy.Basic) -> str:
        raise Inexpressible(str(expr))

    emptyPrinter = _refuse
    _print_Infinity = _print_NegativeInfinity = _print_NaN = _print_ComplexInfinity = _refuse
    _print_IntInfinity = _print_NegativeIntInfinity = _refuse


def conditions(placeholders: Sequence[fx.Node]) -> list[str]:
    """The expressions that torch.export's capture relied on, by the placeholders' recorded sizes and guards.

    What has no form here is left to the graph where it is about values that only the call brings (the graph asserts
    them itself); where it is about sizes of inputs alone, these are those of the example.
    """
    found: list[str] = []
    names: dict[str, str] = {}  # symbol -> the first size that has it
    sizes = [(f"{node.target}.shape[{axis}]", size) for node in placeholders for axis, size in enumerate(_shape(node))]
    free = [(name, size.node) for name, size in sizes if fixed(size) is None]
    for name, node in free:
        if node.expr.is_symbol and str(node.expr) not in names:
            names[str(node.expr)] = name
            found += _bounds(name, node.shape_env.var_to_range[node.expr])
    for name, size in sizes:
        if names.get(str(size.node.expr) if fixed(size) is None else "") != name:
            found.append(f"{name} == {_value(size, names)}")
    if free:
        env = free[0][1].shape_env
        for guard in env.guards:
            found += _guard(env.replace(guard.expr), names, free)
        for size in _squeezed(placeholders[0].graph):
            found += _guard(sympy.Ne(env.replace(size.node.expr), 1), names, free)
    return list(dict.fromkeys(found))


def _squeezed(graph: fx.Graph) -> Iterator[Any]:
    """Free sizes that would be taken away if they were 1. torch.export takes them for others, and no guard says so."""
    for node in graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if packet not in (torch.ops.aten.squeeze, torch.ops.aten.squeeze_):
            continue
        shape = _shape(node.args[0])
        axes = node.args[1] if len(node.args) > 1 else range(len(shape))
        for axis in [axes] if isinstance(axes, int) else axes:
            if len(shape) > 0 and fixed(shape[axis]) is None:
                yield shape[axis]


def _value(size: Any, names: dict[str, str]) -> str:
    """What the graph takes the size for: a number, or an expression of others."""
    if fixed(size) is not None:
        return str(fixed(size))
    try:
        return express(size.node.expr, names)
    except Inexpressible:
        return str(size.node.hint)


def _shape(node: fx.Node) -> Sequence[Any]:
    tensor = node.meta.get("val")
    return tensor.shape if isinstance(tensor, torch.Tensor) else ()


def _bounds(name: str, bounds: Any) -> Iterator[str]:
    if bounds.lower > 0:
        yield f"{name} >= {int(bounds.lower)}"
    if bounds.upper < int_oo and int(bounds.upper) < 2**62:
        yield f"{name} <= {int(bounds.upper)}"


def _guard(expression: sympy.Basic, names: dict[str, str], free: Sequence[tuple[str, Any]]) -> Iterator[str]:
    """A guard as a condition, or the sizes of the example for those that it is about."""
    if expression == True:  # noqa: E712
        return
    try:
        yield express(expression, names)
    except Inexpressible:
        symbols = {str(symbol) for symbol in expression.free_symbols}
        for name, node in free:
            if symbols <= names.keys() and symbols & {str(s) for s in node.expr.free_symbols}:
                yield f"{name} == {node.hint}"


def express(expression: sympy.Basic, names: dict[str, str]) -> str:
    """The expression in Python, symbols by their names; `Inexpressible` where there is none."""
    text = _Printer(names).doprint(expression)
    try:
        compile_condition(text)
    except ValueError as error:
        raise Inexpressible(text) from error
    return text
