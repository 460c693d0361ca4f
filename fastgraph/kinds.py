"""What a file says of nodes' values, read without the symbolic sizes in it: these need sympy and torch._dynamo, whose
imports take a second, and to call a module nobody needs them.

A node's kind is what the engine has to know of its value: null for none, a dtype and a number for the memory of a
tensor, a list of kinds, and 0 for anything else, such as a size.
"""

from typing import Any

import torch

from fastgraph.captured import Input
from fastgraph.cuda import check_available
from fastgraph.encoding import decode

# Functions of sizes by their names in `torch.utils._sympy.functions`, else in sympy.
FUNCTIONS = (
    *("Abs", "Add", "And", "BitwiseFn_bitwise_and", "BitwiseFn_bitwise_or", "BitwiseFn_bitwise_xor", "CeilDiv"),
    *("CeilToInt", "CleanDiv", "Equality", "FloatPow", "FloatTrueDiv", "FloorDiv", "FloorToInt", "GreaterThan", "ITE"),
    *("Identity", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "LShift", "LessThan", "Max", "Min", "Mod"),
    *("ModularIndexing", "Mul", "Not", "OpaqueUnaryFn_acos", "OpaqueUnaryFn_asin", "OpaqueUnaryFn_asinh"),
    *("OpaqueUnaryFn_atan", "OpaqueUnaryFn_cos", "OpaqueUnaryFn_cosh", "OpaqueUnaryFn_exp", "OpaqueUnaryFn_log"),
    *("OpaqueUnaryFn_log2", "OpaqueUnaryFn_sin", "OpaqueUnaryFn_sinh", "OpaqueUnaryFn_sqrt", "OpaqueUnaryFn_tan"),
    *("OpaqueUnaryFn_tanh", "Or", "Piecewise", "Pow", "PowByNatural", "PythonMod", "RShift", "Rational"),
    *("RoundDecimal", "RoundToInt", "StrictGreaterThan", "StrictLessThan", "ToFloat", "TruncToFloat", "TruncToInt"),
    *("Unequality", "Where", "Xor", "ceiling", "floor"),
)
CASE = "ExprCondPair"  # of a Piecewise: a value and its condition
ATOMS = ("oo", "-oo", "int_oo", "-int_oo", "nan", "zoo")


def kind_of(value: Any, storages: dict[int, int]) -> Any:
    """The kind of a recorded value, as JSON. `storages` numbers the memory of tensors, which has to stay alive."""
    if isinstance(value, torch.Tensor):
        number = storages.setdefault(value.untyped_storage()._cdata, len(storages))
        return {"dtype": str(value.dtype).removeprefix("torch."), "storage": number}
    if isinstance(value, tuple | list | dict):
        return [kind_of(item, storages) for item in (value.values() if isinstance(value, dict) else value)]
    return None if value is None else 0


class Kinds:
    """Values of the kinds that a file says: tensors without elements, those of one memory where it says so."""

    def __init__(self) -> None:
        self._memory: dict[int, torch.Tensor] = {}

    def value(self, encoded: Any) -> Any:
        """Something of this kind."""
        if isinstance(encoded, list):
            return [self.value(item) for item in encoded]
        if not isinstance(encoded, dict):
            return encoded
        memory = self._memory.setdefault(encoded["storage"], torch.empty(0, dtype=torch.uint8, device="meta"))
        return memory.view(decode({"torch": encoded["dtype"]}))


def read_input(name: str, encoded: Any) -> Input:
    """A placeholder by its recorded value."""
    tensor = encoded["tensor"]
    sizes = tuple(n if isinstance(n, int) else None for n in tensor["shape"])
    return Input(name, decode(tensor["dtype"]), torch.device(tensor["device"]), torch.strided, sizes)


class Check:
    """Whether recorded values can be read: ValueError or KeyError for one that `fastgraph.values` would not take."""

    def __init__(self, symbols: dict[str, Any]) -> None:
        self._symbols = symbols
        for description in symbols.values():
            for bound in [description["hint"], *(description["range"] or ())]:
                if bound is not None:
                    self._expression(bound)

    def value(self, encoded: dict[str, Any]) -> None:
        """As `Rebuilder.value`, but makes nothing."""
        ((kind, content),) = encoded.items()
        if kind == "tensor":
            self._tensor(content)
        elif kind == "symbolic":
            self._expression(content[1])
        elif kind in ("tuple", "list"):
            for item in content:
                self.value(item)
        elif kind == "dict":
            for key, item in content:
                decode(key)
                self.value(item)
        else:
            decode(content)

    def _tensor(self, description: dict[str, Any]) -> None:
        decode(description["dtype"])
        check_available(torch.device(description["device"]), "the saved graph")
        for number in (*description["shape"], *description["stride"], description["offset"]):
            self._expression(number)

    def _expression(self, encoded: Any) -> None:
        if isinstance(encoded, list):
            name, *arguments = encoded
            if name not in (*FUNCTIONS, CASE, *ATOMS):
                raise ValueError(f"{name!r} is no function of sizes")
            for argument in arguments:
                self._expression(argument)
        elif encoded not in self._symbols and not isinstance(encoded, int | float):
            raise ValueError(f"{encoded!r} is no size")
