"""How long to measure and how calls come: the rounds that fit into a case's time, the calls in a block."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fastgraph.bench.text import duration

MIN_ROUNDS = 3
OVERTIME = 2  # a block that takes so many times what was planned ends early
LEAD_IN = 10  # one call in ten goes ahead of a block, untimed
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
