"""Packed weights are a cache of tensors that somebody else owns: here is how it is known to be fresh."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from fastgraph.kernels import native

_ANY_VERSION = -1
_KEEP = 4  # packings kept for one first weight: the same layer may begin more than one chain


class Snapshot:
    """What a set of tensors was at one moment: which objects, which memory, which versions.

    Every in-place change that autograd knows of (`copy_` under no_grad, an optimizer step, load_state_dict) raises a
    tensor's version; `.to()` and `p.data = ...` give it other memory. The snapshot keeps an alias of the memory that it
    saw, so that its address cannot be given to anything else meanwhile. Writing through an alias that has its own
    version counter (`p.data.mul_(2)`, a NumPy view) cannot be seen. A tensor that was made in inference_mode has no
    version, so that nothing that was computed from it can count as unchanged.

    read: tensors, after `tensors`, from which nothing was computed: they are read anew in each call. Their values may
    change, and so they need no version.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], read: Sequence[torch.Tensor] = ()) -> None:
        self.seen: list[tuple[int, int, int]] | None = None
        if all(has_version(t) for t in tensors):
            versions = [t._version for t in tensors] + [_ANY_VERSION] * len(read)
            self.seen = [(id(t), t.data_ptr(), v) for t, v in zip([*tensors, *read], versions, strict=True)]
        self._aliases = [t.detach() for t in (*tensors, *read)]

    def matches(self, tensors: list[torch.Tensor]) -> bool:
        """Whether `tensors` are the same objects, with the same memory, unchanged."""
        return self.seen is not None and _unchanged(tensors, self.seen)


def has_version(tensor: torch.Tensor) -> bool:
    """Whether a change of its values can be seen: not for what was made in inference_mode."""
    return not tensor.is_inference()


def _unchanged_in_python(tensors: list[torch.Tensor], seen: list[tuple[int, int, int]]) -> bool:
    return len(tensors) == len(seen) and all(
        id(t) == identity and t.data_ptr() == address and (version == _ANY_VERSION or t._version == version)
        for t, (identity, address, version) in zip(tensors, seen, strict=True)
    )


_module = native.kernels()
_unchanged = _unchanged_in_python if _module is None else _module.unchanged


def contiguous(tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Their values in order, without a history. Whoever takes addresses of them keeps them alive meanwhile."""
    return [None if t is None else t.detach().contiguous() for t in tensors]


def address(tensor: torch.Tensor | None) -> int:
    """Of the values; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


class Packed:
    """Packed weights by the tensors that they were packed from, dropped with the first of them."""

    def __init__(self, pack: Callable[..., Any]) -> None:
        self._pack = pack
        self._entries: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def get(self, tensors: Sequence[torch.Tensor | None], *arguments: Any) -> Any:
        """`pack(tensors, *arguments)`, or its earlier result if none of the tensors has changed since.

        Nothing is kept where a tensor has no version: `native.takes` leaves those to ATen beforehand.
        """
        packed = self.find(tensors, *arguments)
        if packed is None:
            packed = self._pack(tensors, *arguments)
            present = [t for t in tensors if t is not None]
            if all(has_version(t) for t in present):
                key = self._key(tensors, arguments)
                entries = self._entries.get(present[0], [])
                self._entries[present[0]] = [(Snapshot(present), key, packed), *entries[: _KEEP - 1]]
        return packed

    @staticmethod
    def _key(tensors: Sequence[torch.Tensor | None], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """What else packed weights depend on: an object has the kernels that it was packed for."""
        return tuple(t is None for t in tensors), arguments, native.isa()

    def find(self, tensors: Sequence[torch.Tensor | None], *arguments: Any) -> Any:
        """What `get` kept for these tensors, which it was given like this and which have not changed; else None."""
        present = [t for t in tensors if t is not None]
        key = self._key(tensors, arguments)
        for snapshot, packed_key, packed in self._entries.get(present[0], ()) if present else ():
            if packed_key == key and snapshot.matches(present):
                return packed
        return None
