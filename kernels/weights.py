"""Packed weights are a cache of tensors that somebody else owns: here is how it is known to be fresh."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from fastgraph.kernels import native

_KEEP = 4  # packings kept for one first weight: the same layer may begin more than one chain


class Snapshot:
    """What a set of tensors was at one moment: which objects, which memory, which versions.

    Every in-place change that autograd knows of (`copy_` under no_grad, an optimizer step, load_state_dict) raises a
    tensor's version; `.to()` and `p.data = ...` give it other memory. The snapshot keeps an alias of the memory that it
    saw, so that its address cannot be given to anything else meanwhile. Writing through an alias that has its own
    version counter (`p.data.mul_(2)`, a NumPy view) cannot be seen.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        # An inference tensor has no version, so that it can never count as unchanged.
        versioned = not any(t.is_inference() for t in tensors)
        self.seen = [(id(t), t.data_ptr(), t._version) for t in tensors] if versioned else None
        self._aliases = [t.detach() for t in tensors]

    def matches(self, tensors: list[torch.Tensor]) -> bool:
        """Whether `tensors` are the same objects, with the same memory, unchanged."""
        return self.seen is not None and _unchanged(tensors, self.seen)


def _unchanged_in_python(tensors: list[torch.Tensor], seen: list[tuple[int, int, int]]) -> bool:
    return [(id(t), t.data_ptr(), t._version) for t in tensors] == seen


_module = native.kernels()
_unchanged = _unchanged_in_python if _module is None else _module.unchanged


class Packed:
    """Packed weights by the tensors that they were packed from, dropped with the first of them."""

    def __init__(self, pack: Callable[..., Any]) -> None:
        self._pack = pack
        self._entries: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def get(self, tensors: Sequence[torch.Tensor | None], *arguments: Any) -> Any:
        """`pack(tensors, *arguments)`, or its earlier result if none of the tensors has changed since."""
        present = [t for t in tensors if t is not None]
        entries = self._entries.get(present[0], [])
        for snapshot, packed_arguments, packed in entries:
            if packed_arguments == arguments and snapshot.matches(present):
                return packed
        packed = self._pack(tensors, *arguments)
        self._entries[present[0]] = [(Snapshot(present), arguments, packed), *entries[: _KEEP - 1]]
        return packed
