"""Measuring on the GPU at hand which plan and tile is fastest, for `kernels.cuda.choices` to keep.

An op's `kernels/<op>/cuda.py` has `trials(*arguments, target=...)`: groups of ways to compute the same thing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastgraph.kernels.cuda import choices
from fastgraph.kernels.cuda.choices import Choice
from fastgraph.kernels.cuda.tiles import Tile

Bench = Callable[[Callable[[], Any]], float]


@dataclass(frozen=True)
class Trial:
    """One way to compute something: what would be saved for it, and the call that is timed."""

    plan: str
    tile: Tile | None
    call: Callable[[], Any]


@dataclass(frozen=True)
class Trials:
    """Ways to compute the same, and what the choice among them holds for."""

    key: str
    rows: int
    ways: Iterable[Trial]


def median_microseconds(call: Callable[[], Any]) -> float:
    """Median time of a call on the GPU, with a cold L2 cache."""
    from triton.testing import do_bench

    return 1000 * float(do_bench(call, return_mode="median"))


def measure(trials: Trials, bench: Bench = median_microseconds) -> Choice:
    """Times every way, and records and returns the fastest.

    A tile that asks for more than the GPU has is passed over; RuntimeError where all of them do.
    """
    from triton.runtime.errors import OutOfResources, PTXASError

    best: Choice | None = None
    for trial in trials.ways:
        try:
            time = bench(trial.call)
        except (OutOfResources, PTXASError):
            continue
        if best is None or time < best.microseconds:
            best = Choice(trials.rows, trial.plan, trial.tile, time)
    if best is None:
        raise RuntimeError(f"{trials.key}: no tile fits this GPU")
    choices.record(trials.key, best)
    return best
