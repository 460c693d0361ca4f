"""Two reports side by side: the ratio of their times, with its spread, and whether it is a regression beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastgraph.bench.backends import BACKENDS, BASELINE_NAME
from fastgraph.bench.ratio import INTERVAL, resampled_medians
from fastgraph.bench.report.report import Report
from fastgraph.bench.report.summary import labels
from fastgraph.bench.results import CaseReport


@dataclass(frozen=True)
class Comparison:
    """One backend in one case of both reports.

    ``ratio`` is the time after over the time before, ``low`` and ``high`` its 95 % bootstrap interval; None with the
    ``reason`` where there is nothing to compare. A ``regression`` is an interval that lies above ``bound`` altogether,
    or a backend that had a speed before and has none now.

    The rounds of one run are seconds apart. What changes from run to run moves all of them alike, and no interval
    over them can see it: runs of the same code beside busy processes gave 28, 37 and 48 us, as there was a second
    processor, at times, or never, with a few per cent between rounds. Who has had the share u of the processors taken
    away may take 1 / (1 - u) times as long, so ``bound`` is (1 + threshold) / (1 - u), with the larger u of both runs.
    """

    case: str
    backend: str
    ratio: float | None
    low: float | None
    high: float | None
    regression: bool
    reason: str | None = None
    bound: float | None = None
    others: float = 0.0

    @property
    def verdict(self) -> str:
        """In words."""
        if self.ratio is None or self.low is None or self.high is None:
            return f"{'regression: ' if self.regression else ''}{self.reason}"
        if self.regression:
            return "regression"
        if self.low <= 1 <= self.high:
            return "no difference"
        assert self.bound is not None
        what, bound = ("slower", self.bound) if self.low > 1 else ("faster", 1 / self.bound)
        return what if what == "faster" and self.high < bound else f"{what}, within the noise"


def compare(
    before: Report, after: Report, backends: Sequence[str], threshold: float, absolute: bool = False
) -> list[Comparison]:
    """Compares the ``backends`` (option names) in every case of ``before``.

    Times are taken relative to eager's in the same round, unless ``absolute``: the machine may have been another, or
    busier, and eager did not change. ValueError where calls came otherwise in the two: with pauses, say.
    """
    if str(before.plan) != str(after.plan):
        raise ValueError(f"reports: need calls that come alike, got {before.plan} and {after.plan}")
    name = labels((*before.cases, *after.cases))
    later = {_key(case): case for case in after.cases}
    comparisons = []
    for case in before.cases:
        second = later.get(_key(case))
        for ours in (BACKENDS[option].name for option in backends):
            if second is not None:
                comparisons.append(_compare(name(case), ours, case, second, threshold, absolute))
            elif _relative(case, ours, absolute) is not None:
                comparisons.append(Comparison(name(case), ours, None, None, None, False, "not in the second report"))
    return [one for one in comparisons if one is not None]


def ratio_interval(
    before: NDArray[np.float64], after: NDArray[np.float64], seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of the medians of two sets of rounds, and its 95 % bootstrap interval (Efron 1979, percentiles).

    Rounds are drawn with replacement, those of each report for themselves, since they were not measured together.
    """
    generator = np.random.default_rng(seed)
    ratios = resampled_medians(after, generator) / resampled_medians(before, generator)
    low, high = np.percentile(ratios, INTERVAL)
    return float(np.median(after) / np.median(before)), float(low), float(high)


def _compare(
    case: str, ours: str, first: CaseReport, second: CaseReport, threshold: float, absolute: bool
) -> Comparison | None:
    """One comparison; None where the backend had no speed before: nothing can have been lost."""
    before, after = (_relative(report, ours, absolute) for report in (first, second))
    if before is None:
        return None
    if after is None:
        row = second.row(ours)
        reason = f"{row.status}: {row.reason}" if row and row.reason else "has no speed in the second report"
        return Comparison(case, ours, None, None, None, True, reason)
    ratio, low, high = ratio_interval(before, after)
    others = max(report.others or 0.0 for report in (first, second))
    bound = (1 + threshold) / max(1 - others, 1e-3)
    return Comparison(case, ours, ratio, low, high, low > bound, bound=bound, others=others)


def _relative(case: CaseReport, backend: str, absolute: bool) -> NDArray[np.float64] | None:
    """The backend's median in each round, over eager's in that round; None where one of them has no speed."""
    rows = [case.row(backend), case.row(BASELINE_NAME)]
    times = [np.array(row.timing.round_costs_s) if row and row.timing else None for row in rows]
    if times[0] is None or absolute or backend == BASELINE_NAME:
        return times[0]
    return None if times[1] is None else times[0] / times[1]


def _key(case: CaseReport) -> tuple[object, ...]:
    """What makes two cases the same."""
    return case.case, case.setting
