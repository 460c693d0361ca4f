"""Timing: interleaved rounds of blocks of calls, and the statistics over the calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

Clock = Callable[[], float]
Call = Callable[[], object]

STABLE = 0.05  # two windows of the warm-up this close, relatively, are called stable
MIN_ROUNDS = 3
LEAD_IN = 10  # one call in ten goes ahead of a block, untimed
QUIET_SLICE_S = 0.01
QUIET_SHARE = 0.1
QUIET_CAP_S = 2.0


@dataclass(frozen=True)
class Plan:
    """How long to measure, in seconds: ``rounds`` blocks of ``block_s`` for each backend.

    A case whose calls are so slow that this would take more than ``case_s`` gets fewer rounds, but three at least.
    """

    rounds: int
    block_s: float
    warm_up_s: float
    case_s: float


DEFAULT = Plan(rounds=15, block_s=0.1, warm_up_s=3.0, case_s=12.0)
QUICK = Plan(rounds=5, block_s=0.05, warm_up_s=0.5, case_s=3.0)


@dataclass(frozen=True)
class WarmUp:
    """Median seconds a call took at the end of the warm-up, and whether it had become stable by then."""

    call_s: float
    stable: bool


@dataclass(frozen=True)
class Timing:
    """Statistics over single calls, in seconds; ``iqr_s`` is the distance between the quartiles."""

    calls: int
    rounds: int
    median_s: float
    iqr_s: float
    p90_s: float


def summarize(samples: list[list[float]]) -> Timing:
    """Statistics over all calls of all rounds; ``samples`` holds, for each round, the seconds of each call."""
    calls = np.concatenate([np.asarray(one_round) for one_round in samples])
    quarter, middle, three_quarters, p90 = (float(value) for value in np.percentile(calls, [25, 50, 75, 90]))
    return Timing(len(calls), len(samples), middle, three_quarters - quarter, p90)


def warm_up(call: Call, plan: Plan, clock: Clock = time.perf_counter) -> WarmUp:
    """Calls for windows of ``block_s`` until the medians of two in a row are within 5 %, or ``warm_up_s`` is over."""
    start = clock()
    before = _window(call, plan.block_s, clock)
    while clock() - start < plan.warm_up_s:
        now = _window(call, plan.block_s, clock)
        if abs(now - before) <= STABLE * before:
            return WarmUp(now, stable=True)
        before = now
    return WarmUp(before, stable=False)


def wait_until_quiet(sleep: Callable[[float], None] = time.sleep, cpu_clock: Clock = time.process_time) -> None:
    """Sleeps until no thread of this process is busy, 2 s at most.

    Worker threads spin for a while after their last call, hoping for more work, and would take a core from the next
    backend. Measured on 2 cores of an AMD EPYC: onnxruntime 1.31's for 60 ms, torch 2.14's OpenMP threads for 12 ms.
    Others report 1.4 s of onnxruntime on another processor, so no fixed pause fits. Spinning stays on while a backend's
    own block is timed: that is its default, and turning it off would slow its calls.
    """
    for _ in range(round(QUIET_CAP_S / QUIET_SLICE_S)):
        before = cpu_clock()
        sleep(QUIET_SLICE_S)
        if cpu_clock() - before < QUIET_SHARE * QUIET_SLICE_S:
            return


def interleave(
    calls: Mapping[str, Call],
    call_s: Mapping[str, float],
    plan: Plan,
    clock: Clock = time.perf_counter,
    wait: Callable[[], None] = wait_until_quiet,
) -> dict[str, list[list[float]]]:
    """Times every backend in every round, so that a change in the machine's speed hits all of them alike.

    Args:
        calls: by backend, the call to time.
        call_s: by backend, about how many seconds a call takes; it sizes the blocks.
        plan: rounds and lengths. Each round begins with another backend.
        clock: what tells the time, in seconds.
        wait: called before each block.

    Returns:
        By backend and round, the seconds of each call.
    """
    samples: dict[str, list[list[float]]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(affordable_rounds(plan, call_s.values())):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wait()
            samples[name].append(_block(calls[name], block_calls(plan, call_s[name]), clock))
    return samples


def affordable_rounds(plan: Plan, call_s: Collection[float]) -> int:
    """Rounds that fit into ``plan.case_s`` with calls of these lengths; three at least, ``plan.rounds`` at most."""
    round_s = sum(max(plan.block_s, one) for one in call_s)
    return max(MIN_ROUNDS, min(plan.rounds, int(plan.case_s / round_s)))


def block_calls(plan: Plan, call_s: float) -> int:
    """Calls in a block of ``plan.block_s``, one at least."""
    return max(1, round(plan.block_s / call_s))


def _block(call: Call, count: int, clock: Clock) -> list[float]:
    """Seconds of each of ``count`` calls, after a tenth as many untimed: parked threads wake, caches fill again."""
    for _ in range(count // LEAD_IN):
        call()
    return [_seconds(call, clock) for _ in range(count)]


def _window(call: Call, window_s: float, clock: Clock) -> float:
    """Median seconds of the calls that fit into ``window_s``, one at least."""
    start, seconds = clock(), [_seconds(call, clock)]
    while clock() - start < window_s:
        seconds.append(_seconds(call, clock))
    return median(seconds)


def _seconds(call: Call, clock: Clock) -> float:
    """Seconds that one call takes."""
    start = clock()
    call()
    return clock() - start
