"""Timing: warm-up, blocks of calls, interleaved rounds, and the statistics over the calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Clock = Callable[[], float]
Call = Callable[[], object]
Seconds = NDArray[np.float64]
T = TypeVar("T")

STABLE = 0.05  # two windows of the warm-up this close, relatively, are called stable
MIN_ROUNDS = 3
OVERTIME = 2  # a block that takes so many times what was planned ends early
LEAD_IN = 10  # one call in ten goes ahead of a block, untimed
CALLS_FOR_P99 = 10_000
MODES = ("rounds", "single-stream", "offline")
MLPERF_QUERIES = 1024  # of a single-stream run: MLPerf Inference rules, section "Scenarios"


@dataclass(frozen=True)
class Plan:
    """How long to measure, in seconds: ``rounds`` blocks of ``block_s`` for each backend.

    A case that would take more than ``case_s`` with them, ceilings included, gets fewer rounds, but three at least.
    ``mode`` is one of ``MODES``; single-stream makes at least ``min_calls`` calls however long they take.
    """

    rounds: int
    block_s: float
    warm_up_s: float
    case_s: float
    mode: str = "rounds"
    min_calls: int = 0


DEFAULT = Plan(rounds=15, block_s=0.05, warm_up_s=1.0, case_s=8.0)
QUICK = Plan(rounds=9, block_s=0.03, warm_up_s=0.3, case_s=2.5)


@dataclass(frozen=True)
class WarmUp:
    """Median seconds a call took at the end of the warm-up, and whether it had become stable by then."""

    call_s: float
    stable: bool


@dataclass(frozen=True)
class Timing:
    """Statistics over single calls, in seconds; ``iqr_s`` is the distance between the quartiles.

    ``p99_s`` is None below ``CALLS_FOR_P99`` calls, where too few are beyond it. ``round_medians_s`` has one value a
    round: those of different backends belong together, one after the other in the same moment of the machine.
    """

    calls: int
    rounds: int
    median_s: float
    mean_s: float
    iqr_s: float
    p90_s: float
    p99_s: float | None
    round_medians_s: tuple[float, ...]


def summarize(samples: Sequence[Seconds]) -> Timing:
    """Statistics over all calls of all rounds; ``samples`` holds, for each round, the seconds of each call."""
    calls = np.concatenate([np.asarray(one_round) for one_round in samples])
    quarter, middle, three_quarters, p90, p99 = (float(v) for v in np.percentile(calls, [25, 50, 75, 90, 99]))
    return Timing(
        calls=len(calls),
        rounds=len(samples),
        median_s=middle,
        mean_s=float(calls.mean()),
        iqr_s=three_quarters - quarter,
        p90_s=p90,
        p99_s=p99 if len(calls) >= CALLS_FOR_P99 else None,
        round_medians_s=tuple(float(np.median(one_round)) for one_round in samples),
    )


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


def interleave(blocks: Mapping[str, Callable[[int], T | None]], rounds: int) -> dict[str, list[T]]:
    """Runs one block of everybody in every round, so that a change in the machine's speed hits all of them alike.

    Args:
        blocks: by name, what runs a block, given the number of the round; None where it sits this round out.
        rounds: how many; each begins with another one, the order stays.

    Returns:
        By name, what its blocks gave, round by round.
    """
    results: dict[str, list[T]] = {name: [] for name in blocks}
    names = list(blocks)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            result = blocks[name](turn)
            if result is not None:
                results[name].append(result)
    return results


def affordable_rounds(plan: Plan, call_s: Collection[float], others_s: float = 0.0) -> int:
    """Rounds that fit into ``plan.case_s`` with calls of these lengths; three at least, ``plan.rounds`` at most.

    ``others_s``: seconds of each round that are not for the backends.
    """
    round_s = sum(max(plan.block_s * (1 + 1 / LEAD_IN), one) for one in call_s) + others_s
    return max(MIN_ROUNDS, min(plan.rounds, int(plan.case_s / round_s)))


def block_calls(plan: Plan, call_s: float, rounds: int) -> int:
    """Calls in one of ``rounds`` blocks of ``plan.block_s``; one at least, and ``plan.min_calls`` in all."""
    return max(1, round(plan.block_s / call_s), -(-plan.min_calls // rounds))


def block_limit_s(plan: Plan) -> float:
    """When a block ends even if calls are missing; never where the mode asks for a number of calls."""
    return float("inf") if plan.min_calls else OVERTIME * plan.block_s


def block(call: Call, count: int, limit_s: float = float("inf"), clock: Clock = time.perf_counter) -> Seconds:
    """Seconds of each of ``count`` calls, after a tenth as many untimed: parked threads wake, caches fill again.

    It ends after ``limit_s``, with one call at least: beside a busy neighbour calls may take ten times what they did
    in the warm-up, and the others would wait.
    """
    start = clock()
    for _ in range(-(-count // LEAD_IN) if count > 1 else 0):
        call()
        if clock() - start > limit_s / 2:
            break
    seconds = [_seconds(call, clock)]
    while len(seconds) < count and clock() - start < limit_s:
        seconds.append(_seconds(call, clock))
    return np.array(seconds)


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
