"""ATen's concatenation, in place where its parts are computed by kernels."""

from collections.abc import Sequence

import torch

from fastgraph.kernels.lowering import Lowering, Operand, as_channels_last, axis_of, lowers, require

aten = torch.ops.aten


def parts(whole: torch.Tensor, sizes: Sequence[int], dim: int) -> list[torch.Tensor]:
    """Where the parts of a concatenation are."""
    places, at = [], 0
    for size in sizes:
        places.append(whole.narrow(dim, at, size))
        at += size
    return places


@lowers(aten.cat.default)
def cat(low: Lowering, tensors: Sequence[Operand], dim: int = 0) -> torch.Tensor:
    """The tensors behind each other; those that are in their places already stay there."""
    values = [low.ready(x) for x in tensors]
    dim = axis_of(dim, values[0].dim())
    others = [[n for axis, n in enumerate(x.shape) if axis != dim] for x in values]
    require(all(other == others[0] for other in others), "sizes that do not fit")
    sizes = [x.shape[dim] for x in values]
    size = list(values[0].shape)
    size[dim] = sum(sizes)
    if (adjacent := _adjacent(values, dim)) is not None:
        return adjacent
    is_last = len(size) in (3, 4) and any(not x.is_contiguous() and as_channels_last(x) is not None for x in values)
    whole = low.result(size, channels_last=is_last)
    for x, place in zip(values, parts(whole, sizes, dim), strict=True):
        if not low.is_at(x, place):
            low.copy(x, place)
    return whole


def _adjacent(values: Sequence[torch.Tensor], dim: int) -> torch.Tensor | None:
    """What the values are together, where they lie behind each other in one memory."""
    first = values[0]
    size, at = list(first.shape), first.storage_offset()
    for x in values:
        one = x.untyped_storage()._cdata == first.untyped_storage()._cdata
        if not one or x.stride() != first.stride() or x.storage_offset() != at or x.stride(dim) != 1:
            return None
        at += x.shape[dim]
    size[dim] = sum(x.shape[dim] for x in values)
    return first.as_strided(size, first.stride()) if len(values) > 1 else None
