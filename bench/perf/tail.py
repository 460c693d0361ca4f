"""The 99th percentile of a call beside a busy process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastgraph.bench.backends import OURS, Setting
from fastgraph.bench.cases import Case, deep, net
from fastgraph.bench.perf.result import short_mark
from fastgraph.bench.plan import Plan
from fastgraph.bench.session import Session, session
from fastgraph.bench.text import duration
from fastgraph.bench.timing import Seconds

TAIL = ((16, deep, 20_000, 3.0), (1, net, 2_000, 2.5))  # batch, model, calls, how many times the idle p99


@dataclass(frozen=True)
class Tail:
    """Percentiles of a call in seconds, on an idle machine and beside one process that never rests."""

    case: str
    calls: int
    idle_p50_s: float
    idle_p99_s: float
    busy_p50_s: float
    busy_p99_s: float

    @property
    def ratio(self) -> float:
        """p99 beside the busy process over the idle one."""
        return self.busy_p99_s / self.idle_p99_s


def tails(setting: Setting, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tails beside a busy process."""
    for batch, model, calls, allowed in TAIL:
        (case,) = model([batch])
        with session([OURS], setting) as running:
            row = running.run(case, plan).rows[0]
            if row.timing is None:
                yield f"tail, {case.name}: {row.status}: {row.reason}", {"tail": case.name, "reason": row.reason}
                continue
            measured = tail(running, case, calls)
        yield _tail_line(measured, allowed), {"tail": asdict(measured), "allowed": allowed}


def tail(running: Session, case: Case, calls: int) -> Tail:
    """Times ``calls`` calls of fastgraph twice. The case must have been run in the session before."""
    idle = np.percentile(_block(running, calls), [50, 99])
    with busy_process():
        busy = np.percentile(_block(running, calls), [50, 99])
    return Tail(case.name, calls, float(idle[0]), float(idle[1]), float(busy[0]), float(busy[1]))


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that computes without rest while the context is open."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(0.2)  # it has begun
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _block(running: Session, calls: int) -> Seconds:
    seconds = running.call(OURS, "block", calls)
    assert isinstance(seconds, np.ndarray)
    return seconds


def _tail_line(result: Tail, allowed: float) -> str:
    """The tail in one line."""
    idle, busy = ((result.idle_p50_s, result.idle_p99_s), (result.busy_p50_s, result.busy_p99_s))
    return (
        f"tail, {result.case}, {result.calls:,} calls: idle p50 {duration(idle[0])}, p99 {duration(idle[1])}; beside a "
        f"busy process p50 {duration(busy[0])}, p99 {duration(busy[1])}: {result.ratio:.1f} times the idle p99 "
        f"({allowed}){short_mark(result.ratio > allowed)}"
    )
