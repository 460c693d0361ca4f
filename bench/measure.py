"""Timing: warm-up, blocks of calls, interleaved rounds, and the statistics over the calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fastgraph.bench.text import duration

Clock = Callable[[], float]
Call = Callable[[], object]
Seconds = NDArray[np.float64]
T = TypeVar("T")

STABLE = 0.05  # two windows of the warm-up this close, relatively, are called stable
MIN_ROUNDS = 3
OVERTIME = 2  # a block that takes so many times what was planned ends early
LEAD_IN = 10  # one call in ten goes ahead of a block, untimed
CALLS_FOR_P99 = 10_000
MODES = ("rounds", "single-stream", "offline", "server")
MLPERF_QUERIES = 1024  # of a single-stream run: MLPerf Inference rules, section "Scenarios"


@dataclass(frozen=True)
class Plan:
    """How long to measure, in seconds: ``rounds`` blocks of ``block_s`` for each backend.

    A case that would take more than ``case_s`` with them, ceilings included, gets fewer rounds, but three at least.
    ``mode`` is one of ``MODES``; single-stream makes at least ``min_calls`` calls however long they take, and in server
    ``rate_per_s`` queries a second arrive. ``pause_s``: sleep before each call. ``processes``: so many of a backend run
    at once on the same cores.
    """

    rounds: int
    block_s: float
    warm_up_s: float
    case_s: float
    mode: str = "rounds"
    min_calls: int = 0
    pause_s: float = 0.0
    rate_per_s: float | None = None
    processes: int = 1

    @property
    def tight(self) -> bool:
        """Whether one process makes one call right after the other."""
        return not self.pause_s and self.rate_per_s is None and self.processes == 1

    def __str__(self) -> str:
        """How calls come, in the report."""
        if self.rate_per_s is not None:
            return f"mode server: {self.rate_per_s:,g} queries a second arrive at random (Poisson)"
        how = [f"{duration(self.pause_s)} asleep before each call"] if self.pause_s else []
        how += [f"{self.processes} processes at once on the same cores"] if self.processes > 1 else []
        return ", ".join([f"mode {self.mode}", *how])


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
    ``round_calls_per_s``: calls a second of all processes together, where there are several.
    """

    calls: int
    rounds: int
    median_s: float
    mean_s: float
    iqr_s: float
    p90_s: float
    p99_s: float | None
    round_medians_s: tuple[float, ...]
    round_calls_per_s: tuple[float, ...] = ()

    @property
    def round_costs_s(self) -> tuple[float, ...]:
        """What backends are compared by, round by round: seconds of a call, or seconds a call of all processes."""
        return tuple(1 / rate for rate in self.round_calls_per_s) or self.round_medians_s

    @property
    def calls_per_s(self) -> float:
        """Calls a second: those of all processes, or what the median gives."""
        return median(self.round_calls_per_s) if self.round_calls_per_s else 1 / self.median_s


def summarize(samples: Sequence[Seconds], calls_per_s: Sequence[float] = ()) -> Timing:
    """Statistics over all calls of all rounds.

    ``samples`` holds, for each round, the seconds of each call; ``calls_per_s`` what all processes did a second.
    """
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
        round_calls_per_s=tuple(calls_per_s),
    )


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
    round_s = sum(max(plan.block_s * (1 + 1 / LEAD_IN), one + plan.pause_s) for one in call_s) + others_s
    return max(MIN_ROUNDS, min(plan.rounds, int(plan.case_s / round_s)))


def block_calls(plan: Plan, call_s: float, rounds: int) -> int:
    """Calls in one of ``rounds`` blocks of ``plan.block_s``; one at least, and ``plan.min_calls`` in all."""
    return max(1, round(plan.block_s / (call_s + plan.pause_s)), -(-plan.min_calls // rounds))


def lead_in(count: int) -> int:
    """Calls that go ahead of a block of ``count``."""
    return -(-count // LEAD_IN) if count > 1 else 0


def block_limit_s(plan: Plan) -> float:
    """When a block ends even if calls are missing; never where the mode asks for a number of calls."""
    return float("inf") if plan.min_calls else OVERTIME * plan.block_s


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

    It ends after ``limit_s``, with one call at least: beside a busy neighbour calls may take ten times what they did
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
