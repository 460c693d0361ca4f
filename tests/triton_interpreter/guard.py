"""Memory around a kernel's tensors that tells when it is read or written.

The interpreter reads and writes out of bounds without a word: inputs lie in NaN, outputs between sentinels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

MARGIN = 4096  # elements on either side: as far as a tile may reach
SENTINEL = 12352.0  # a number that every dtype holds exactly


def in_nan(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy with NaN before and behind it."""
    buffer = tensor.new_full((tensor.numel() + 2 * MARGIN,), float("nan"))
    inside = buffer[MARGIN : MARGIN + tensor.numel()].view(tensor.shape)
    return inside.copy_(tensor)


def rows_in_nan(tensor: torch.Tensor) -> torch.Tensor:
    """A copy whose last axis has NaN between its rows, so that a row read too far shows; not contiguous."""
    *before, last = tensor.shape
    buffer = in_nan(tensor.new_full((*before, last + 7), float("nan")))
    return buffer[..., :last].copy_(tensor)


@contextmanager
def guarded_outputs() -> Iterator[None]:
    """Tensors allocated meanwhile lie between sentinels; at the end all of them, and nothing else, is written."""
    plain: Callable[..., torch.Tensor] = torch.Tensor.new_empty
    allocated: list[tuple[torch.Tensor, int]] = []

    def new_empty(self: torch.Tensor, *size: Any, **options: Any) -> torch.Tensor:
        shape = torch.Size(pytree.tree_leaves(size))
        buffer = plain(self, shape.numel() + 2 * MARGIN, **options).fill_(SENTINEL)
        allocated.append((buffer, shape.numel()))
        return buffer[MARGIN : MARGIN + shape.numel()].view(shape)

    torch.Tensor.new_empty = new_empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.new_empty = plain  # type: ignore[method-assign]
    assert allocated, "nothing was allocated"
    for buffer, size in allocated:
        outside = torch.cat([buffer[:MARGIN], buffer[MARGIN + size :]])
        assert (outside == SENTINEL).all(), "written outside of the output"
        assert not (buffer[MARGIN : MARGIN + size] == SENTINEL).any(), "a part of the output was not written"


def convert(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`function` of every tensor in a structure."""
    return pytree.tree_map(lambda v: function(v) if isinstance(v, torch.Tensor) else v, value)
