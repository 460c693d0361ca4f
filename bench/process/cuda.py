"""Timing on a CUDA device: events around each call, the L2 cache cold or warm, plain launches or one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastgraph.bench.plan import LEAD_IN
from fastgraph.bench.timing import Seconds

WARM_UPS = 3  # calls on a side stream before a capture, as torch.cuda.graphs' documentation asks for
FLUSH_TIMES = 2  # of the L2's size: what is written between calls when it is to be cold


class Event(Protocol):
    """What is used of ``torch.cuda.Event``."""

    def record(self) -> None:
        """Marks this place in the stream."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from this mark to ``end``'s."""


def block(
    call: Callable[[], object],
    count: int,
    flush: Callable[[], object] | None = None,
    event: Callable[[], Event] = lambda: torch.cuda.Event(enable_timing=True),
    synchronize: Callable[[], None] = torch.cuda.synchronize,
) -> Seconds:
    """Seconds that the device takes for each of ``count`` calls, after a tenth as many untimed.

    ``flush`` runs before each call, outside its time. The host is not waited for in between, as in a program that keeps
    the device busy.
    """
    for _ in range(-(-count // LEAD_IN)):
        call()
    marks = [(event(), event()) for _ in range(count)]
    synchronize()
    for start, end in marks:
        if flush is not None:
            flush()
        start.record()
        call()
        end.record()
    synchronize()
    return np.array([start.elapsed_time(end) / 1e3 for start, end in marks])


def flusher(device: torch.device) -> Callable[[], object]:
    """What empties the device's L2 cache: writing a buffer of twice its size."""
    size = torch.cuda.get_device_properties(device).L2_cache_size * FLUSH_TIMES
    buffer = torch.empty(size, dtype=torch.int8, device=device)
    return buffer.zero_


def captured(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """``call`` as one CUDA graph; calling it replays the graph and gives the same tensor each time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def with_copies(run: Callable[[Tensor], Tensor], x: Tensor, device: torch.device) -> Callable[[], Tensor]:
    """A call that begins and ends with the tensors in the host's memory, ``x`` pinned."""
    pinned = x.cpu().pin_memory()
    return lambda: run(pinned.to(device, non_blocking=True)).cpu()


def ieee_fp32() -> None:
    """fp32 means fp32: no TF32 in matrix products or convolutions, whatever PyTorch's defaults."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
