"""What onnxruntime makes of two files of the same model, in one run: interleaved rounds, medians."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median, quantiles

from torch import Tensor

from fastgraph.export.graphs import text
from fastgraph.export.runtime import session

ROUNDS, BUDGET_S = (10, 2000), 4.0


def compare(ours: Path, plain: Path, x: Tensor, threads: int | None = None) -> str:
    """A line that says how much faster ``ours`` is than ``plain`` on the input ``x``, or slower.

    Each round calls both once, in turn the one and the other first. The ratio is taken in every round, so that a change
    in the machine's speed hits both. Threads spin while a call runs, as they do in a session of onnxruntime's own, and
    not behind it: two sessions would take each other's cores.
    """
    running = [session(path, threads=threads, spinning="run") for path in (ours, plain)]
    fed = {running[0].get_inputs()[0].name: x.numpy()}
    samples: list[list[float]] = [[], []]
    for one in (*running, *running):
        one.run(None, fed)
    started, turn = time.perf_counter(), 0
    while turn < ROUNDS[0] or (turn < ROUNDS[1] and time.perf_counter() - started < BUDGET_S):
        for which in (turn % 2, 1 - turn % 2):
            start = time.perf_counter()
            running[which].run(None, fed)
            samples[which].append(time.perf_counter() - start)
        turn += 1
    used = text.threads(running[0].get_session_options().intra_op_num_threads)
    shape = "x".join(map(str, x.shape))
    return f"{ours.name} on {shape}, onnxruntime, {used}, median of {turn} rounds: {verdict(*samples)}"


def verdict(ours: list[float], plain: list[float]) -> str:
    """Both medians in seconds, and the rounds' ratio with its quartiles; "no difference" where 1 is between them."""
    low, middle, high = quantiles([theirs / mine for mine, theirs in zip(ours, plain, strict=True)], n=4)
    word = "no difference" if low <= 1 <= high else "faster" if low > 1 else "slower"
    times = f"{text.seconds(median(ours))}, the plain export {text.seconds(median(plain))}"
    return f"{times}; {word}: {middle:.2f} times as fast (quartiles {low:.2f} to {high:.2f})"
