"""How many times as fast one backend is as another, with the interval that the rounds give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastgraph.bench.timing import Timing

RESAMPLES = 4000
INTERVAL = (2.5, 97.5)  # percent: the interval's ends


@dataclass(frozen=True)
class Ratio:
    """A speed over another one, and the ends of its 95 % interval; above 1 is faster."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """The ratio and its interval, where it has one: "1.55 (1.52-1.58)"."""
        if self.low == self.high:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f}-{self.high:.2f})"


def speed_ratio(ours: Timing, other: Timing) -> Ratio:
    """How many times as fast ``ours`` is as ``other``.

    Rounds belong together, so it is the median over the rounds of each round's ratio, which a change in the machine's
    speed from round to round leaves alone, with its bootstrap interval (Efron 1979, percentiles). A backend that sat
    later rounds out is compared in those that it has.
    """
    count = min(len(ours.round_costs_s), len(other.round_costs_s))
    ratios = np.array(other.round_costs_s[:count]) / np.array(ours.round_costs_s[:count])
    low, high = np.percentile(resampled_medians(ratios, np.random.default_rng(0)), INTERVAL)
    return Ratio(float(np.median(ratios)), float(low), float(high))


def resampled_medians(values: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Medians of ``RESAMPLES`` samples of ``values``, drawn with replacement."""
    return np.median(generator.choice(values, (RESAMPLES, len(values))), axis=1)
