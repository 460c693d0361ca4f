"""What of a module a captured graph stands for: whether a module that has changed still is what was captured."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastgraph.tracing import DERIVED

_IGNORED = {"training", *DERIVED}


class Fingerprint:
    """A module's layers, attributes, and the kinds of its tensors, by their places.

    Two are equal where a graph that was captured from one holds for the other, with the other's tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        self.places: dict[tuple[str, ...], Any] = {}
        self._first: dict[int, tuple[str, ...]] = {}  # where a tensor stands first: tied ones are one
        for path, module in model.named_modules(remove_duplicate=False):
            self.places[(path,)] = type(module)
            for name, value in vars(module).items():
                if name not in _IGNORED:
                    self._add((path, name), value)

    def _add(self, place: tuple[str, ...], value: Any) -> None:
        if isinstance(value, dict) and len(place) == 2:
            self.places[place] = type(value), len(value)
            for key, item in value.items():
                self._add((*place, str(key)), item)
        elif type(value) in (list, tuple, set) and len(place) == 2:
            self.places[place] = type(value), len(value)
            for index, item in enumerate(value):
                self._add((*place, str(index)), item)
        elif isinstance(value, torch.Tensor):
            tied = self._first.setdefault(id(value), place)
            self.places[place] = _Kind(value), tied
        else:
            self.places[place] = value

    def changes(self, other: "Fingerprint") -> list[str]:
        """Names of what is not as in `other`."""
        places = [*self.places, *(p for p in other.places if p not in self.places)]
        missing = object()
        found = [p for p in places if not _same(self.places.get(p, missing), other.places.get(p, missing))]
        return list(dict.fromkeys(_name(place) for place in found))


class _Kind:
    """What a graph relies on about a tensor, apart from its values."""

    def __init__(self, tensor: torch.Tensor) -> None:
        kind = torch.Tensor if isinstance(tensor, nn.Parameter) else type(tensor)
        self._kind = kind, tensor.shape, tensor.dtype, tensor.device, tensor.layout

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kind) and self._kind == other._kind

    __hash__ = None  # type: ignore[assignment]


def _same(a: Any, b: Any) -> bool:
    """One object, or equal plain values: torch.export puts copies of lists and dictionaries in their place."""
    if a is b:
        return True
    if type(a) is type(b) and isinstance(a, tuple | list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if type(a) is type(b) and isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    return type(a) is type(b) and isinstance(a, _Kind | bool | int | float | str | bytes) and a == b


def _name(place: tuple[str, ...]) -> str:
    """layer1.weight for ("layer1", "_parameters", "weight")."""
    path, *rest = place
    return ".".join(part for part in (path, *rest) if part and not part.startswith("_")) or path or "model"


@contextmanager
def modes(model: nn.Module, training: dict[nn.Module, bool]) -> Iterator[None]:
    """The model's layers in these modes for as long as the context is open."""
    before = {module: module.training for module in model.modules()}
    for module in before:
        if module in training:
            module.training = training[module]
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
