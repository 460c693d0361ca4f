"""What onnxruntime makes of two files of the same model, in one run: interleaved rounds, medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from torch import Tensor

from fastgraph.export.graphs import text
from fastgraph.export.runtime import Binding, session

ROUNDS, BUDGET_S = (10, 2000), 4.0
FEW_ROUNDS, FEW_S = (7, 30), 1.0


def compare(ours: Path, plain: Path, x: Tensor, threads: int | None = None) -> str:
    """A line that says how much faster ``ours`` is than ``plain`` on the input ``x``, or slower.

    Threads spin while a call runs, as they do in a session of onnxruntime's own, and not behind it: two sessions would
    take each other's cores.
    """
    running = [session(path, threads=threads, spinning="run") for path in (ours, plain)]
    fed = {running[0].get_inputs()[0].name: x.numpy()}
    samples = _in_turn([partial(one.run, None, fed) for one in running], ROUNDS, BUDGET_S)
    used = text.threads(running[0].get_session_options().intra_op_num_threads)
    shape = "x".join(map(str, x.shape))
    return f"{ours.name} on {shape}, onnxruntime, {used}, median of {len(samples[0])} rounds: {verdict(*samples)}"


def is_faster(data: bytes, than: bytes, inputs: Sequence[Tensor]) -> bool:
    """Whether onnxruntime runs one file faster than the other on these inputs, on the CPU, with torch's threads.

    It is faster if it was in three rounds of four, each a call of both; there are 7 to 30 rounds in about a second.
    """
    bound = [Binding(session(one, spinning="run")) for one in (data, than)]
    tensors = [tensor.cpu() for tensor in inputs]
    samples = _in_turn([partial(one, *tensors) for one in bound], FEW_ROUNDS, FEW_S)
    return _ratios(*samples)[0] > 1


def _in_turn(calls: Sequence[Callable[[], Any]], rounds: tuple[int, int], budget_s: float) -> list[list[float]]:
    """Seconds of each of two calls in every round, in turn the one and the other first.

    A ratio taken in every round is not of the machine's speed, which changes. At least and at most so many ``rounds``.
    """
    samples: list[list[float]] = [[], []]
    for call in (*calls, *calls):
        call()
    started, turn = time.perf_counter(), 0
    while turn < rounds[0] or (turn < rounds[1] and time.perf_counter() - started < budget_s):
        for which in (turn % 2, 1 - turn % 2):
            start = time.perf_counter()
            calls[which]()
            samples[which].append(time.perf_counter() - start)
        turn += 1
    return samples


def verdict(ours: list[float], plain: list[float]) -> str:
    """Both medians in seconds, and the rounds' ratio with its quartiles; "no difference" where 1 is between them."""
    low, middle, high = _ratios(ours, plain)
    word = "no difference" if low <= 1 <= high else "faster" if low > 1 else "slower"
    times = f"{text.seconds(median(ours))}, the plain export {text.seconds(median(plain))}"
    return f"{times}; {word}: {middle:.2f} times as fast (quartiles {low:.2f} to {high:.2f})"


def _ratios(ours: list[float], plain: list[float]) -> list[float]:
    """The quartiles of how many times as fast ``ours`` was in each round."""
    return quantiles([theirs / mine for mine, theirs in zip(ours, plain, strict=True)], n=4)
