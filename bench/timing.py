"""What the timed calls of a case took: statistics over single calls and over rounds, and what a call costs beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from fastgraph.bench.plan import Plan

Seconds = NDArray[np.float64]

CALLS_FOR_P99 = 10_000
MANY_FAULTS = 100  # a call
KERNEL_SHARE = 0.1  # of the processor's time


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


@dataclass(frozen=True)
class Usage:
    """What a timed call costs beside its time, over all threads of the process, pauses included.

    ``cpu_s``: processor seconds a call; threads that spin for more work count. ``kernel``: share of them, 0..1, that
    the kernel took. ``page_faults`` a call. ``between_s``: seconds between the end of a call and the next one's begin,
    where there is a rest.
    """

    cpu_s: float
    kernel: float
    page_faults: float
    between_s: float | None = None

    @property
    def faults(self) -> bool:
        """Whether page faults take a good part of the time."""
        return self.page_faults >= MANY_FAULTS and self.kernel > KERNEL_SHARE


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


def samples_per_s(timing: Timing, batch: int, plan: Plan) -> float | None:
    """Samples a second where calls are made as fast as possible; offline counts all samples in all time."""
    if plan.pause_s or plan.rate_per_s is not None:
        return None
    return batch / timing.mean_s if plan.mode == "offline" else batch * timing.calls_per_s
