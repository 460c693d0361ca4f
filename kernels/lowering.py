"""Lowering: ATen's operators, on inputs of known sizes, to steps of a native plan (`kernels/runtime/plan.h`).

A value is a tensor on the "meta" device: its sizes and strides say how it lies, its storage in which memory. So a view
is what ATen's operator makes of it, and a layout is a matter of strides. A kernel of an op folder is reached through
its `aten.py`, which registers a function for each ATen operator that the kernel computes:

    @lowers(aten.max_pool2d.default)
    def max_pool2d(low: Lowering, x: Operand, kernel_size: list[int], ...) -> Operand

with the operator's own arguments. It raises `NotLowered` for what no kernel computes; the operator is then ATen's, as
in every graph that runs without a plan.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fastgraph.kernels import native

LOWERINGS: dict[Any, Callable[..., Any]] = {}  # by ATen's operator
_CONDITIONS: dict[Any, Callable[..., bool]] = {}  # what an operator's arguments have to be


class NotLowered(Exception):
    """No kernel takes such arguments."""


def require(condition: bool, what: str) -> None:
    """NotLowered, of inputs that ATen would raise an error for, or that no kernel takes, unless `condition`."""
    if not condition:
        raise NotLowered(what)


def axis_of(dim: int, rank: int) -> int:
    """An axis from 0 on."""
    require(-rank <= dim < rank, f"no axis {dim}")
    return dim % rank


class BoundAten:
    """An ATen operator of one tensor as a function of it, for other arguments that stay what they are.

    name: of the kernel's folder. kernel: what it has packed, None where it takes no such arguments. makes_a_plan:
    whether one alone is worth a plan.
    """

    name: str
    makes_a_plan = False
    kernel: Any = None

    def __init__(self, target: Any, *arguments: Any, **named: Any) -> None:
        self._target, self._arguments = target, (arguments, named)

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """By ATen."""
        arguments, named = self._arguments
        result: torch.Tensor = self._target(input, *arguments, **named)
        return result

    def tensors(self) -> list[torch.Tensor]:
        """Its constant tensors."""
        return [leaf for leaf in pytree.tree_leaves(self._arguments) if isinstance(leaf, torch.Tensor)]

    def lower(self, low: "Lowering", x: "Operand") -> "Operand":
        """Adds what computes it."""
        raise NotImplementedError


def takes_fp32(*weights: torch.Tensor | None) -> bool:
    """Whether kernels take these weights, fp32, of which there may be none."""
    present = [t for t in weights if t is not None]
    if native.kernels() is None or any(t.dtype is not torch.float32 for t in present):
        return False
    return not present or native.takes(*present)


BOUND: dict[Any, type[BoundAten]] = {}  # by ATen's operator: those that compute on constant weights


def binds(*targets: Any) -> Callable[[type[BoundAten]], type[BoundAten]]:
    """Registers the class of these operators, where all arguments but the first are constant."""

    def register(kind: type[BoundAten]) -> type[BoundAten]:
        BOUND.update(dict.fromkeys(targets, kind))
        return kind

    return register


class Pending:
    """A value that is not computed yet, since what reads it may be computed with it: an epilogue, or more of a chain.

    Only its one reader is handed it as such; everybody else has it computed first.
    """

    def __init__(self, size: Sequence[int]) -> None:
        self.tensor = torch.empty(size, device="meta")  # its sizes

    def emit(self, low: "Lowering") -> torch.Tensor:
        """Adds what computes it."""
        raise NotImplementedError


Operand = torch.Tensor | Pending


def size_of(x: Operand) -> torch.Size:
    """Its sizes."""
    return x.tensor.shape if isinstance(x, Pending) else x.shape


def lowers(*targets: Any, when: Callable[..., bool] | None = None) -> Callable[..., Callable[..., Any]]:
    """Registers how these operators are lowered; `when(*arguments)`: only with such arguments, whatever the sizes.

    What is refused so splits a plan; what is refused in lowering only leaves all of the plan to ATen.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        LOWERINGS.update(dict.fromkeys(targets, function))
        if when is not None:
            _CONDITIONS.update(dict.fromkeys(targets, when))
        return function

    return register


def can_be_lowered(target: Any, *arguments: Any, **named: Any) -> bool:
    """Whether an operator with these arguments, where anything may stand for a tensor, has a kernel."""
    return target in LOWERINGS and (target not in _CONDITIONS or _CONDITIONS[target](*arguments, **named))


def channels_last_strides(size: Sequence[int], pixel: int | None = None) -> tuple[int, ...]:
    """Strides of [N, C, W] or [N, C, H, W], channels last; `pixel`: values from one pixel to the next, C if None."""
    pixel = size[1] if pixel is None else pixel
    strides = [1] * len(size)
    for axis in (*range(len(size) - 1, 1, -1), 0):
        strides[axis] = pixel
        pixel *= size[axis]
    return tuple(strides)


def are_alike(size: Sequence[int], strides: Sequence[int], others: Sequence[int]) -> bool:
    """Whether values lie alike: strides along axes of one value say nothing."""
    return all(n == 1 or a == b for n, a, b in zip(size, strides, others, strict=True))


def as_channels_last(x: torch.Tensor) -> torch.Tensor | None:
    """`x` with the strides that kernels are told, where it has channels last (kernels/cpu/kernel.h), else None."""
    if x.dim() not in (3, 4) or 0 in x.shape:
        return None
    outer = zip((x.shape[0], *x.shape[2:]), (x.stride(0), *x.stride()[2:]), strict=True)
    channels, pixels = x.shape[1], [stride for size, stride in outer if size > 1]
    pixel = pixels[-1] if pixels else channels
    if (channels > 1 and x.stride(1) != 1) or pixel < channels:
        return None
    strides = channels_last_strides(x.shape, pixel)
    return x.as_strided(x.shape, strides) if are_alike(x.shape, x.stride(), strides) else None


class Lowering:
    """Collects the slots and steps of one program."""

    def __init__(self) -> None:
        module = native.kernels()
        assert module is not None
        self.kernels = module
        self.steps: list[tuple[Any, list[int], list[int]]] = []
        self.slots: list[tuple[list[int], list[int], int, int, int]] = []
        self._owners: dict[int, int] = {}  # slots by the storages of their tensors
        self._by_view: dict[tuple[Any, ...], int] = {}
        self._alive: list[torch.Tensor] = []  # so that no storage is another's later
        self._destination: torch.Tensor | None = None

    def new(self, size: Sequence[int], *, channels_last: bool = False) -> torch.Tensor:
        """A value with memory of its own."""
        if channels_last:
            return self._own(torch.empty_strided(size, channels_last_strides(size), device="meta"), 0)
        return self._own(torch.empty(size, device="meta"), 0)

    def constant(self, tensor: torch.Tensor) -> torch.Tensor:
        """A value that is the same in every call, where it is. The caller keeps it alive."""
        if not native.is_plain(tensor, torch.float32):
            raise NotLowered(f"a constant in {tensor.dtype}")
        x = torch.empty_strided(tensor.shape, tensor.stride(), device="meta")
        return self._own(x, tensor.data_ptr())

    def _own(self, x: torch.Tensor, address: int) -> torch.Tensor:
        if x.numel() == 0:
            raise NotLowered("no values")
        slot = len(self.slots)
        self.slots.append((list(x.shape), list(x.stride()), slot, 0, address))
        self._owners[x.untyped_storage()._cdata] = slot
        self._by_view[self._key(x)] = slot
        self._alive.append(x)
        return x

    @staticmethod
    def _key(x: torch.Tensor) -> tuple[Any, ...]:
        return x.untyped_storage()._cdata, x.storage_offset(), x.shape, x.stride()

    def slot(self, x: torch.Tensor) -> int:
        """The slot of a value; a new one where it shows another's memory."""
        key = self._key(x)
        if key not in self._by_view:
            self._by_view[key] = len(self.slots)
            owner = self._owners[x.untyped_storage()._cdata]
            self.slots.append((list(x.shape), list(x.stride()), owner, int(x.storage_offset()), 0))
        return self._by_view[key]

    def is_at(self, x: torch.Tensor, place: torch.Tensor) -> bool:
        """Whether a value lies where `place` is."""
        return self._key(x) == self._key(place)

    def is_own(self, x: torch.Tensor) -> bool:
        """Whether it is all of a memory."""
        return self._by_view.get(self._key(x)) == self._owners[x.untyped_storage()._cdata]

    def step(self, kernel: Any, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        """Adds a step; returns its result."""
        self.steps.append((kernel, [self.slot(x) for x in inputs], [self.slot(output)]))
        return output

    def copy(self, x: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """Adds a copy."""
        return self.step(self.kernels.Copy(), [x], to)

    def ready(self, x: Operand) -> torch.Tensor:
        """The value, computed."""
        return x.emit(self) if isinstance(x, Pending) else x

    def contiguous(self, x: Operand) -> torch.Tensor:
        """The value with its elements in order."""
        x = self.ready(x)
        if x.is_contiguous():
            return x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride())
        return self.copy(x, self.new(x.shape))

    def channels_last(self, x: Operand) -> torch.Tensor:
        """The value, [N, C, W] or [N, C, H, W], with channels last."""
        x = self.ready(x)
        if x.dim() not in (3, 4):
            raise NotLowered(f"no map: {list(x.shape)}")
        last = as_channels_last(x)
        return self.copy(x, self.new(x.shape, channels_last=True)) if last is None else last

    def result(self, size: Sequence[int], *, channels_last: bool = False) -> torch.Tensor:
        """Where the value that is being computed goes: its part of a concatenation, or memory of its own."""
        place, self._destination = self._destination, None
        if place is not None and channels_last and place.shape == torch.Size(size):
            return place
        return self.new(size, channels_last=channels_last)

    def into(self, place: torch.Tensor | None) -> None:
        """What is computed next is a part of a concatenation, with channels last; None: it is not."""
        self._destination = place
