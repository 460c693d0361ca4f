"""How a module is called: every way to write a call in one form, and names for the tensors in it."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

# Types of arguments that are no tensors: they are part of what a graph was captured for.
CONSTANTS = (type(None), bool, int, float, complex, str, bytes, slice, torch.dtype, torch.device, torch.layout)
_MISSING = inspect.Parameter.empty


@dataclass(frozen=True)
class Parameter:
    """One parameter of `forward`: its name, kind (as of `inspect.Parameter`) and default value."""

    name: str
    kind: int
    default: Any = _MISSING

    @property
    def has_default(self) -> bool:
        """Whether it may be left out."""
        return self.default is not _MISSING


class Signature:
    """The parameters of a module's `forward`.

    None: it cannot be told (a built-in function); then a call is taken as it is written.
    """

    def __init__(self, parameters: Sequence[Parameter] | None) -> None:
        self.parameters = parameters
        self._signature = None if parameters is None else _signature(parameters)

    @classmethod
    def of(cls, forward: Callable[..., Any]) -> "Signature":
        """The signature of a bound `forward`."""
        try:
            signature = inspect.signature(forward)
        except (TypeError, ValueError):
            return cls(None)
        return cls([Parameter(p.name, int(p.kind), p.default) for p in signature.parameters.values()])

    def canonical(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call with every argument by position that can be, and without defaults where they need not be written.

        TypeError, as Python's own, where the arguments do not fit the parameters.
        """
        if self._signature is None:
            return tuple(args), dict(kwargs)
        given = self._signature.bind(*args, **kwargs).arguments
        positional: list[Any] = []
        defaults: list[Any] = []  # of the positional ones
        named: dict[str, Any] = {}
        for p in self._signature.parameters.values():
            if p.kind is p.VAR_POSITIONAL:
                if extra := given.get(p.name):
                    positional, defaults = [*positional, *extra], []
            elif p.kind is p.VAR_KEYWORD:
                named.update(given.get(p.name, {}))
            elif p.kind is p.KEYWORD_ONLY:
                if given.get(p.name, p.default) is not p.default:
                    named[p.name] = given[p.name]
            else:
                positional.append(given.get(p.name, p.default))
                defaults.append(p.default)
        while defaults and positional[-1] is defaults[-1]:
            positional.pop()
            defaults.pop()
        return tuple(positional), named

    def names(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
        """A name for every leaf of a canonical call: `x`, `pair_0`, `state_hidden`."""
        names = [self._position(i) for i in range(len(args))]
        paths, _ = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))
        found: list[str] = []
        for path, _ in paths:
            which, first, *rest = cast(Any, path)
            head = names[first.idx] if which.idx == 0 else str(first.key)
            name = re.sub(r"\W", "_", "_".join([head, *(_part(key) for key in rest)]))
            name = name if name.isidentifier() else f"input_{name}"
            found.append(name if name not in found else f"{name}_{len(found)}")
        return found

    def _position(self, index: int) -> str:
        positional = [p for p in self.parameters or () if p.kind <= inspect.Parameter.VAR_POSITIONAL]
        for i, p in enumerate(positional):
            if p.kind == inspect.Parameter.VAR_POSITIONAL:
                return f"{p.name}_{index - i}"
            if i == index:
                return p.name
        return f"args_{index}"


def _signature(parameters: Sequence[Parameter]) -> inspect.Signature:
    kinds = [inspect._ParameterKind(p.kind) for p in parameters]
    return inspect.Signature(
        [inspect.Parameter(p.name, kind, default=p.default) for p, kind in zip(parameters, kinds, strict=True)]
    )


def _part(key: Any) -> str:
    """One step of a pytree path."""
    for attribute in ("idx", "key", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def check_leaves(leaves: Sequence[Any], names: Sequence[str]) -> None:
    """TypeError, naming the argument, for a value that is neither a tensor nor one of `CONSTANTS`."""
    for name, value in zip(names, leaves, strict=True):
        if isinstance(value, (torch.Tensor, *CONSTANTS)):
            continue
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        hint = "; torch.from_numpy makes one" if kind.startswith("numpy.") else ""
        raise TypeError(f"{name}: needs a torch.Tensor or a plain Python value, got {kind}{hint}")


def constant_key(value: Any) -> Any:
    """What tells one Python value from another: 1 from True and 1.0, and NaN from no NaN."""
    if isinstance(value, slice):
        return slice, constant_key(value.start), constant_key(value.stop), constant_key(value.step)
    return type(value), repr(value) if isinstance(value, float | complex) else value
