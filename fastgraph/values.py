"""What a capture recorded about each node's value, as JSON, and back: sizes, dtypes, and who shares memory with whom.

The fake tensors are built from that. No operator's shape function runs, so what was captured can be loaded. `kinds`
reads the same without making any of it.
"""

from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch._guards import SLoc
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, ValueRangesSLoc
from torch.utils._sympy import functions
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.symbol import SymT, make_symbol, symbol_is_type
from torch.utils._sympy.value_ranges import ValueRanges

from fastgraph.cuda import check_available
from fastgraph.encoding import decode, encode
from fastgraph.kinds import ATOMS, CASE, FUNCTIONS

_FOUND = ((name, getattr(functions, name, getattr(sympy, name, None))) for name in FUNCTIONS)
_CLASSES: dict[str, Any] = {name: kind for name, kind in _FOUND if kind is not None}  # an older torch lacks some
_CLASSES[CASE] = lambda value, condition: (value, condition)
_ATOMS = dict(zip(ATOMS, (sympy.oo, -sympy.oo, int_oo, -int_oo, sympy.nan, sympy.zoo), strict=True))
_ASSUMPTIONS = ("integer", "real", "positive", "nonnegative")
_SYMBOLS = {"s": SymT.SIZE, "zf": SymT.FLOAT, "u": SymT.UNBACKED_INT, "zuf": SymT.UNBACKED_FLOAT}


class Recorder:
    """Writes values down; `symbols` are those that it met."""

    def __init__(self) -> None:
        self.symbols: dict[str, Any] = {}
        self._storages: dict[int, int] = {}
        self._alive: list[Any] = []  # an address says who shares memory as long as nobody else gets it

    def value(self, value: Any) -> Any:
        """A tensor, a size, a container of these, or plain data; TypeError, naming the type, for others."""
        if isinstance(value, torch.Tensor):
            return {"tensor": self._tensor(value)}
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            node = value.node
            if node.expr.is_Integer:
                return {"plain": int(node.expr)}
            hint = encode(node.hint) if node.has_hint() else None
            return {"symbolic": [node.pytype.__name__, self._number(value), hint]}
        if isinstance(value, tuple | list):
            return {type(value).__name__ if type(value) is list else "tuple": [self.value(item) for item in value]}
        if isinstance(value, dict):
            return {"dict": [[encode(key), self.value(item)] for key, item in value.items()]}
        return {"plain": encode(value)}

    def _tensor(self, tensor: torch.Tensor) -> dict[str, Any]:
        if tensor.layout is not torch.strided:
            raise TypeError(f"a tensor of layout {tensor.layout}")
        storage = tensor.untyped_storage()
        self._alive.append(storage)
        return {
            "dtype": encode(tensor.dtype),
            "device": str(tensor.device),
            "shape": [self._number(n) for n in tensor.shape],
            "stride": [self._number(n) for n in tensor.stride()],
            "offset": self._number(tensor.storage_offset()),
            "storage": self._storages.setdefault(storage._cdata, len(self._storages)),
            "requires_grad": tensor.requires_grad,
        }

    def _number(self, number: Any) -> Any:
        if isinstance(number, int | float):
            return number
        expression = self._expression(number.node.expr)
        for symbol in sorted(number.node.expr.free_symbols, key=str):
            self._symbol(symbol, number.node.shape_env)
        return expression

    def _expression(self, expression: sympy.Basic) -> Any:
        """Numbers and symbols as they are, others as [function, argument ...]."""
        if expression.is_symbol:
            return str(expression)
        if isinstance(expression, sympy.Integer):
            return int(expression)
        if isinstance(expression, sympy.Float):
            return float(expression)
        if expression in (sympy.true, sympy.false):
            return bool(expression)
        for name, atom in _ATOMS.items():
            if expression == atom:
                return [name]
        if isinstance(expression, sympy.Rational):
            return ["Rational", int(expression.p), int(expression.q)]
        name = type(expression).__name__
        if name not in _CLASSES:
            raise TypeError(f"a size with {name}")
        return [name, *(self._expression(arg) for arg in expression.args)]

    def _symbol(self, symbol: sympy.Symbol, env: ShapeEnv) -> None:
        if symbol.name in self.symbols:
            return
        hint, bounds = env.backed_var_to_val.get(symbol), env.var_to_range.get(symbol)
        self.symbols[symbol.name] = {
            "hint": None if hint is None else self._expression(hint),
            "range": None if bounds is None else [self._expression(bounds.lower), self._expression(bounds.upper)],
            "assumptions": [name for name in _ASSUMPTIONS if symbol.assumptions0.get(name)],
        }


class Rebuilder:
    """Makes fake tensors and symbolic sizes of what a `Recorder` wrote, all in one mode."""

    def __init__(self, symbols: dict[str, Any]) -> None:
        self._env = ShapeEnv(duck_shape=False)
        self._mode = FakeTensorMode(shape_env=self._env, allow_non_fake_inputs=True)
        self._memory: dict[int, torch.Tensor] = {}  # what has a storage, by its number
        self._sizes: dict[str, Any] = {}  # those of one node are mostly those of the next
        self._symbols = {name: self._symbol(name, **description) for name, description in symbols.items()}

    def value(self, encoded: dict[str, Any]) -> Any:
        """What `Recorder.value` was given."""
        ((kind, content),) = encoded.items()
        if kind == "tensor":
            return self._tensor(content)
        if kind == "symbolic":
            return self._symbolic(*content)
        if kind in ("tuple", "list"):
            return {"tuple": tuple, "list": list}[kind](self.value(item) for item in content)
        if kind == "dict":
            return {decode(key): self.value(item) for key, item in content}
        return decode(content)

    def _tensor(self, description: dict[str, Any]) -> torch.Tensor:
        dtype, device = decode(description["dtype"]), torch.device(description["device"])
        check_available(device, "the saved graph")
        shape, stride = ([self._size(n) for n in description[name]] for name in ("shape", "stride"))
        with torch.no_grad(), self._env.suppress_guards():
            # A view of an empty tensor: it has no bounds to check, and costs a tenth of a tensor with these sizes.
            memory = self._memory.setdefault(description["storage"], torch.empty(0, dtype=torch.uint8, device="meta"))
            meta = memory.view(dtype).as_strided(shape, stride, self._size(description["offset"]))
        fake = FakeTensor(self._mode, meta, device)
        return fake.requires_grad_(description["requires_grad"])

    def _size(self, encoded: Any) -> int | torch.SymInt:
        if isinstance(encoded, int):
            return encoded
        key = str(encoded)
        if key not in self._sizes:
            expression, hints = self._expression(encoded), self._env.backed_var_to_val
            hint = int(expression.xreplace(hints)) if expression.free_symbols <= hints.keys() else None
            self._sizes[key] = self._env.create_symintnode(expression, hint=hint)
        return self._sizes[key]

    def _symbolic(self, kind: str, encoded: Any, hint: Any) -> Any:
        expression, hint = self._expression(encoded), decode(hint)
        if kind == "int":
            return self._env.create_symintnode(expression, hint=hint)
        if kind == "float":
            return self._env.create_symfloatnode(expression, hint=hint)
        return self._env.create_symboolnode(expression)

    def _expression(self, encoded: Any) -> sympy.Basic:
        if isinstance(encoded, str):
            return self._symbols[encoded]
        if not isinstance(encoded, list):
            return sympy.sympify(encoded) if isinstance(encoded, bool | int) else sympy.Float(float(encoded))
        name, *arguments = encoded
        return _ATOMS[name] if name in _ATOMS else _CLASSES[name](*(self._expression(a) for a in arguments))

    def _symbol(self, name: str, hint: Any, range: Any, assumptions: list[str]) -> sympy.Symbol:
        (kind,) = [kind for prefix, kind in _SYMBOLS.items() if name.rstrip("0123456789") == prefix]
        number = int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))
        symbol = make_symbol(kind, number, **{a: True for a in assumptions if a in _ASSUMPTIONS})
        if hint is not None:
            self._env.backed_var_to_val[symbol] = self._expression(hint)
        if range is not None:
            self._env.var_to_range[symbol] = ValueRanges(*(self._expression(bound) for bound in range))
            # Where a range is from is asked for in error messages alone, and to look costs 0.3 s of imports.
            self._env.var_to_range_sloc[symbol] = ValueRangesSLoc(*[SLoc(None, None)] * 2)
        if symbol_is_type(symbol, SymT.UNBACKED_INT):  # those that are made later have other names
            self._env.unbacked_symint_counter = max(self._env.unbacked_symint_counter, number + 1)
        return symbol
