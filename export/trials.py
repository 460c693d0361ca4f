"""Inputs that an ONNX file is tried on: the example's, in other sizes of every axis that the file declares free."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

BATCHES = (1, 3)
T = TypeVar("T")


def rows(inputs: Sequence[Any], batch: int) -> list[Any]:
    """The inputs with ``batch`` rows, the first ones; where there are not enough they come again, moved on each time.

    One moved on by a place is still real data, and another row than the one before. Of no rows come zeros.
    """
    return [resized(value, 0, batch) if isinstance(value, Tensor) else value for value in inputs]


def resized(tensor: Tensor, axis: int, size: int) -> Tensor:
    """``tensor`` with ``size`` places along ``axis``: its own, then again, moved on along the last axis."""
    if tensor.shape[axis] == 0:
        return tensor.new_zeros([*tensor.shape[:axis], size, *tensor.shape[axis + 1 :]])
    rounds = -(-size // tensor.shape[axis])
    moved = [tensor if i == 0 or tensor.dim() == 1 else tensor.roll(i, -1) for i in range(rounds)]
    return torch.cat(moved, axis).narrow(axis, 0, size) if rounds else tensor.narrow(axis, 0, 0)


def places(shapes: Sequence[Sequence[Any]]) -> dict[str, list[tuple[int, int]]]:
    """The free sizes, which are text among numbers, each with the (tensor, axis) that have it."""
    found: dict[str, list[tuple[int, int]]] = {}
    for position, shape in enumerate(shapes):
        for axis, size in enumerate(shape):
            if isinstance(size, str):
                found.setdefault(size, []).append((position, axis))
    return found


def trials(
    graph_for: Callable[[list[Tensor]], T | None], flat: Sequence[Tensor], shapes: Sequence[Sequence[Any]]
) -> Iterator[tuple[list[Tensor], T]]:
    """Inputs to run, each with what ``graph_for`` gives for it: None where eager does not take them, which is no trial.
    Made inputs may break a rule that no size tells of (an index out of its table).

    Args:
        graph_for: the graph that says what the model computes of inputs.
        flat: the example's.
        shapes: the file's: a free size has a name there, the same in every input that shares it. Sizes computed from
            others follow them.
    """
    axes = places(shapes)
    for alternatives in _sizes(flat, {name: where for name, where in axes.items() if name.isidentifier()}):
        for sizes in alternatives:
            inputs = _with_sizes(flat, axes, sizes)
            if (graph := graph_for(inputs)) is not None:
                yield inputs, graph
                break


def _sizes(
    flat: Sequence[Tensor], axes: Mapping[str, Sequence[tuple[int, int]]]
) -> Iterator[Sequence[Mapping[str, int]]]:
    """Sizes by name of each trial, and where eager may not take these, of others in its place.

    The example as it is; batches of 1 and 3, in all inputs together, whether or not their first axes are one size or
    are used at all; another size of every other axis alone, and 1, a case of its own for many operators; all axes in
    other sizes at once, since a product of two may be burnt in.
    """
    now = {name: int(flat[where[0][0]].shape[where[0][1]]) for name, where in axes.items()}
    firsts = [name for name, where in axes.items() if any(axis == 0 for _, axis in where)]
    others = [name for name in axes if name not in firsts]
    one = dict.fromkeys(firsts, 1)
    yield [{}]
    for batch in BATCHES:
        if any(now[name] != batch for name in firsts):
            yield [dict.fromkeys(firsts, batch)]
    for name in (*others, *(firsts if len(firsts) > 1 else ())):
        near = [size for size in (now[name] + 1, now[name] - 1) if size > 0]
        yield [{**batch, name: size} for batch in (one, {}) for size in near]
        if now[name] > 2:
            yield [{**batch, name: 1} for batch in (one, {})]
    if others:
        yield [dict.fromkeys(firsts, 2) | {name: now[name] + step for name in others} for step in (1, -1)]


def _with_sizes(
    flat: Sequence[Tensor], axes: Mapping[str, Sequence[tuple[int, int]]], sizes: Mapping[str, int]
) -> list[Tensor]:
    """The inputs with the axes of these names made longer or shorter, and those whose size is computed of them."""
    made = list(flat)
    now = {name: int(flat[where[0][0]].shape[where[0][1]]) for name, where in axes.items() if name.isidentifier()}
    for name, where in axes.items():
        size = sizes.get(name) if name in now else _computed(name, {**now, **sizes})
        if size is not None:
            for position, axis in where:
                made[position] = resized(made[position], axis, size)
    return made


def _computed(expression: str, sizes: Mapping[str, int]) -> int | None:
    """The size that a file says as ``2*features``; None where it is more than arithmetic, or no size."""
    with suppress(NameError, TypeError, ArithmeticError):
        found = eval(expression, {"__builtins__": {}}, dict(sizes))
        return found if isinstance(found, int) and found >= 0 else None
    return None
