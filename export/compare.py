"""What onnxruntime makes of two files of the same model: interleaved medians."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from torch import Tensor

from export.graphs import text
from export.runtime import session

ROUNDS, BUDGET_S = (10, 2000), 4.0


def compare(ours: Path, plain: Path, x: Tensor, threads: int | None = None) -> str:
    """A line that says how much faster ``ours`` is than ``plain`` on the input ``x``.

    Each round calls both once, in turn the one and the other first. Idle threads spin, onnxruntime's own default, so
    that the pause in which the other one runs is not paid for by waking them.
    """
    running = [session(path, threads=threads, spinning=True) for path in (ours, plain)]
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
    mine, other = (median(one) for one in samples)
    used = running[0].get_session_options().intra_op_num_threads
    shape = "x".join(map(str, x.shape))
    return (
        f"{ours.name} on {shape}, onnxruntime, {text.threads(used)}, median of {turn}: {text.seconds(mine)}; "
        f"the plain export {text.seconds(other)}, {other / mine:.2f} times as long"
    )
