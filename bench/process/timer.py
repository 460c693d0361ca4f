"""The loops that time calls in the runner's process: the warm-up, and blocks of calls one after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from fastgraph.bench.plan import Plan, lead_in
from fastgraph.bench.timing import Seconds

Clock = Callable[[], float]
Call = Callable[[], object]

STABLE = 0.05  # two windows of the warm-up this close, relatively, are called stable


@dataclass(frozen=True)
class WarmUp:
    """Median seconds a call took at the end of the warm-up, and whether it had become stable by then."""

    call_s: float
    stable: bool


def warm_up(call: Call, plan: Plan, clock: Clock = time.perf_counter) -> WarmUp:
    """Calls for windows of ``block_s`` until the medians of two in a row are within 5 %, or ``warm_up_s`` is over."""
    start = clock()
    before = _window(call, plan, clock)
    while clock() - start < plan.warm_up_s:
        now = _window(call, plan, clock)
        if abs(now - before) <= STABLE * before:
            return WarmUp(now, stable=True)
        before = now
    return WarmUp(before, stable=False)


def block(
    call: Call,
    count: int,
    limit_s: float = float("inf"),
    clock: Clock = time.perf_counter,
    pause_s: float = 0.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Seconds:
    """Seconds of each of ``count`` calls, after a tenth as many untimed: parked threads wake, caches fill again.

    Before each call, ``pause_s`` asleep.

    It ends after ``limit_s``, with one call at least: beside a busy process calls may take ten times what they did
    in the warm-up, and the others would wait.
    """
    start = clock()
    for _ in range(lead_in(count)):
        if pause_s:
            sleep(pause_s)
        call()
        if clock() - start > limit_s / 2:
            break
    seconds: list[float] = []
    while not seconds or (len(seconds) < count and clock() - start < limit_s):
        if pause_s:
            sleep(pause_s)
        seconds.append(_seconds(call, clock))
    return np.array(seconds)


def _window(call: Call, plan: Plan, clock: Clock) -> float:
    """Median seconds of the calls that fit with their pauses into ``plan.block_s``, one at least."""
    start = clock()
    seconds = [_seconds(call, clock)]
    while clock() - start < plan.block_s:
        if plan.pause_s:
            time.sleep(plan.pause_s)
        seconds.append(_seconds(call, clock))
    return median(seconds)


def _seconds(call: Call, clock: Clock) -> float:
    """Seconds that one call takes."""
    start = clock()
    call()
    return clock() - start
