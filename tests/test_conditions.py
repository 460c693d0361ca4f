"""Conditions on sizes: Python's own arithmetic, readable, and nothing else."""

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import sympy
import torch
from torch import nn
from torch.utils._sympy import functions as f

from fastgraph import guards
from fastgraph.capture import capture
from fastgraph.conditions import compile_condition
from fastgraph.guards import Inexpressible, express

A, B = sympy.symbols("s0 s1", integer=True, positive=True)
NAMES = {"s0": "x.shape[0]", "s1": "x.shape[1]"}
SIZES = [1, 2, 3, 5, 8, 17, 100, 1023, 2**31 + 1, 2**53 + 1, 2**62 - 3]
FLOAT = f.ToFloat(A)
HALF = FLOAT * 0.5
BELOW = f.IntTrueDiv(1, A)  # within the domain of asin and acos
NUMBERS = [
    A + B - 3,
    -A * B + 2 * A,
    A**3 - B**2,
    A / 2 + B / 3,
    1 / A + 2 / B**2,
    sympy.Abs(A - B),
    sympy.floor(A / 3),
    sympy.ceiling(B / 3),
    f.FloorDiv(A - B, B + 2),
    f.FloorDiv(A, B + 2) - f.FloorDiv(B, 3) * 2,
    f.CleanDiv(A, B),
    f.ModularIndexing(A, 3, B + 1),
    f.PythonMod(A - B, B + 7),
    f.PythonMod(A - B, -3),
    f.Mod(A, B + 2) * 2,
    f.Where(A > B, A, B + 7),
    f.CeilToInt(HALF),
    f.FloorToInt(f.FloatTrueDiv(f.ToFloat(A - B), 3.0)),
    f.TruncToInt(f.FloatTrueDiv(f.ToFloat(A - B), 3.0)),
    f.TruncToFloat(f.FloatTrueDiv(f.ToFloat(A - B), 3.0)),
    f.RoundToInt(f.ToFloat(A - B) * 0.5),
    f.RoundDecimal(f.FloatTrueDiv(FLOAT, 7.0), 2),
    f.RoundDecimal(FLOAT, -1),
    f.IntTrueDiv(A - B, B) + 1.5,
    f.FloatTrueDiv(A, B + 2),
    f.FloatPow(FLOAT, 0.5),
    f.PowByNatural(2, f.Min(A, 9)) + f.PowByNatural(A, 2),
    f.LShift(A, f.Min(B, 7)) - f.RShift(A, 3),
    f.CeilDiv(A, 4),
    f.Max(A, B, 5) - f.Min(A, 2 * B),
    f.Identity(A + B) * 2,
    f.IsNonOverlappingAndDenseIndicator(A, B, B, 1),
    f.BitwiseFn_bitwise_and(A, 6) + f.BitwiseFn_bitwise_or(A, B) + f.BitwiseFn_bitwise_xor(A, 5),
    sympy.Piecewise((A, A > 5), (B, B > 3), (0, True)),
    f.OpaqueUnaryFn_sqrt(A),
    f.OpaqueUnaryFn_log(A),
    f.OpaqueUnaryFn_log2(A),
    f.OpaqueUnaryFn_exp(BELOW),
    f.OpaqueUnaryFn_sin(A) + f.OpaqueUnaryFn_cos(A),
    f.OpaqueUnaryFn_tan(A),
    f.OpaqueUnaryFn_sinh(BELOW) + f.OpaqueUnaryFn_cosh(BELOW),
    f.OpaqueUnaryFn_tanh(A),
    f.OpaqueUnaryFn_asin(BELOW) + f.OpaqueUnaryFn_acos(BELOW),
    f.OpaqueUnaryFn_atan(A) + f.OpaqueUnaryFn_asinh(A),
]
TRUTHS = [
    sympy.Eq(A, B),
    sympy.Ne(A, B),
    A < B,
    A <= B,
    A > 2 * B,
    A >= B - 3,
    sympy.And(A > B, sympy.Or(sympy.Not(sympy.Eq(A, B + 3)), B < 3)),
    sympy.Not(sympy.And(A > B, B > 2)),
    sympy.Xor(A > B, B > 2, A > 100),
    sympy.ITE(A > B, B > 2, A > 2),
    sympy.Eq(sympy.Piecewise((1, A > B), (0, True)), 1),
    sympy.Eq(f.TruncToInt(HALF), B),
]


def sizes() -> Iterator[tuple[int, int]]:
    for a in SIZES:
        for b in SIZES:
            yield a, b


def holds(expression: sympy.Basic, a: int, b: int) -> bool:
    return compile_condition(express(expression, NAMES))({"x": SimpleNamespace(shape=(a, b))})


@pytest.mark.parametrize("expression", NUMBERS, ids=str)
def test_a_number_is_what_sympy_evaluates_it_to(expression: sympy.Expr) -> None:
    compared = 0
    for a, b in sizes():
        value = expression.xreplace({A: sympy.Integer(a), B: sympy.Integer(b)})
        value = value.expand(identity=True) if value.has(f.Identity) else value
        assert value.is_Number, value
        assert holds(sympy.Eq(expression, value, evaluate=False), a, b), (a, b, value)
        assert not holds(sympy.Ne(expression, value, evaluate=False), a, b), (a, b, value)
        compared += 1
    assert compared == len(SIZES) ** 2


@pytest.mark.parametrize("expression", TRUTHS, ids=str)
def test_a_relation_is_what_sympy_evaluates_it_to(expression: sympy.Basic) -> None:
    truths = [bool(expression.xreplace({A: sympy.Integer(a), B: sympy.Integer(b)})) for a, b in sizes()]
    assert [holds(expression, a, b) for a, b in sizes()] == truths
    assert len(set(truths)) == 2


def test_every_function_of_sizes_was_tried() -> None:
    tried = {type(part).__name__ for e in [*NUMBERS, *TRUTHS] for part in sympy.preorder_traversal(e)}
    classes = {c.__name__ for c in vars(f).values() if isinstance(c, type) and issubclass(c, sympy.Function)}
    rewritten = {"CeilDiv", "LShift", "RShift"}  # into other functions, when they are made
    abstract = {"Function", "Application"}
    assert classes - rewritten - abstract - tried == set()
    assert {"Max", "Min", "Piecewise", "Pow"} <= tried


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (sympy.Eq(f.TruncToInt(HALF), B), "trunc(0.5*float(x.shape[0])) == x.shape[1]"),
        (f.FloorDiv(A + 1, B) * 2 - 3 > B, "2*((x.shape[0] + 1) // x.shape[1]) - 3 > x.shape[1]"),
        (sympy.Eq(f.PythonMod(A - B, 3), 0), "((x.shape[0] - x.shape[1]) % 3) == 0"),
        (f.FloatPow(FLOAT, 0.5) < 3, "float(x.shape[0]) ** 0.5 < 3"),
        (sympy.Eq(A / 2, B), "Fraction(1, 2)*x.shape[0] == x.shape[1]"),
        (-(A**2) + B > 0, "x.shape[1] - x.shape[0] ** 2 > 0"),
    ],
)
def test_conditions_can_be_read(expression: sympy.Basic, text: str) -> None:
    assert express(expression, NAMES) == text


@pytest.mark.parametrize(
    "expression",
    [sympy.sqrt(A) > 1, sympy.Eq(sympy.Piecewise((A, A > B)), 2), sympy.Symbol("u0") > A, sympy.log(A) > 1],
)
def test_what_has_no_form(expression: sympy.Basic) -> None:
    with pytest.raises(Inexpressible):
        express(expression, NAMES)


class Branch(nn.Module):
    """Takes one branch or the other, by its input's second size."""

    def __init__(self, of: Callable[[Any], Any], limit: float) -> None:
        super().__init__()
        self.of, self.limit = of, limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if self.of(x.shape[1]) > self.limit else x + 1


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "int(n * .5)": lambda n: int(n * 0.5),
    "floor(n / 2)": lambda n: math.floor(n / 2),
    "ceil(n / 3)": lambda n: math.ceil(n / 3),
    "trunc(n / 3)": lambda n: math.trunc(n / 3),
    "round(n / 2)": lambda n: round(n / 2),
    "n / 4": lambda n: n / 4,
    "n // 3": lambda n: n // 3,
    "-n // 3": lambda n: -n // 3,
    "-n % 5": lambda n: -n % 5,
    "n ** .5": lambda n: n**0.5,
    "sqrt(n)": lambda n: math.sqrt(n),
    "n ** 2": lambda n: n**2,
    "min": lambda n: min(n, 9) + max(n, 6),
    "abs(5 - n)": lambda n: abs(5 - n),
    "n & 6": lambda n: n & 6,
    "n >> 1": lambda n: n >> 1,
    "1 << n": lambda n: 1 << n,
    "float(n) * .3": lambda n: float(n) * 0.3,
    "2 * int(n * .25) + n": lambda n: 2 * int(n * 0.25) + n,
}
# What torch.export asks for as a number, so that it is that of the example.
FIXED: dict[str, Callable[[Any], Any]] = {
    "int(n * .5)": FUNCTIONS["int(n * .5)"],
    "sqrt(n)": lambda n: n,
    "float(n) * .3": lambda n: n,
    "2 * int(n * .25) + n": lambda n: int(n * 0.25),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("example", [5, 9])
def test_a_branch_on_a_computed_size(name: str, example: int) -> None:
    """The conditions hold for exactly the sizes that take the example's branch."""
    of, fixed = FUNCTIONS[name], FIXED.get(name, lambda n: 0)
    limit = (of(5) + of(9)) / 2
    captured = capture(Branch(of, limit).eval(), (torch.ones(3, example),))
    checks = [holds for _, holds in captured.checks]
    for n in range(1, 40):
        holds = all(check({"x": torch.ones(3, n)}) for check in checks)
        same = (of(n) > limit) == (of(example) > limit) and fixed(n) == fixed(example)
        assert holds == same, (n, captured.conditions)


def test_what_cannot_be_expressed_fixes_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(guards._Printer, "_print_TruncToInt")
    monkeypatch.delitem(guards._CALLS, "TruncToInt")
    captured = capture(Branch(lambda n: int(n * 0.5), 3).eval(), (torch.ones(3, 9),))
    assert "x.shape[1] == 9" in captured.conditions
    assert not any("x.shape[0] ==" in condition for condition in captured.conditions)


def test_a_condition_without_a_value_does_not_hold() -> None:
    x = {"x": torch.ones(0, 3)}
    for text in ("x.shape[1] % x.shape[0] == 0", "log(x.shape[0]) < 3", "2.0 ** (x.shape[1] * 1000) > 1"):
        assert not compile_condition(text)(x)


def test_inputs_may_be_called_like_functions() -> None:
    tensors = {"floor": torch.ones(5, 3), "max": torch.ones(2)}
    assert compile_condition("floor(float(floor.shape[0]) / 2.0) == max(max.shape[0], 1)")(tensors)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "x.data",
        "x.shape.__class__",
        "(lambda: 1)()",
        "open('f')",
        "[1]",
        "x[0]",
        "1 +",
        "'a'",
        "x",
        "floor",
        "x(1)",
        "floor(x=1)",
        "x.shape[0].real",
        "(y := 3)",
        "max(*x.shape)",
        "f'{1}'",
    ],
)
def test_nothing_but_arithmetic(text: str) -> None:
    with pytest.raises(ValueError, match="condition: "):
        compile_condition(text)
