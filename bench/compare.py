"""Two reports side by side: the ratio of their times, with its spread, and whether it is a regression beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from bench.backends import BACKENDS, BASELINE
from bench.report import Report
from bench.session import CaseReport

RESAMPLES = 4000
INTERVAL = (2.5, 97.5)  # percent: the interval's ends


@dataclass(frozen=True)
class Comparison:
    """One backend in one case of both reports.

    ``ratio`` is the time after over the time before, ``low`` and ``high`` its 95 % bootstrap interval; None with the
    ``reason`` where there is nothing to compare. A ``regression`` is an interval that lies above 1 + threshold
    altogether, or a backend that had a speed before and has none now.
    """

    case: str
    backend: str
    ratio: float | None
    low: float | None
    high: float | None
    regression: bool
    reason: str | None = None


def compare(
    before: Report, after: Report, backends: Sequence[str], threshold: float, absolute: bool = False
) -> list[Comparison]:
    """Compares the ``backends`` (option names) in every case of ``before``.

    Times are taken relative to eager's in the same round, unless ``absolute``: the machine may have been another, or
    busier, and eager did not change.
    """
    later = {_key(case): case for case in after.cases}
    found = []
    for case in before.cases:
        for name in backends:
            ours = BACKENDS[name].name
            first = _relative(case, ours, absolute)
            if first is None:
                continue  # it had no speed before: nothing can have been lost
            second = later.get(_key(case))
            if second is None:
                found.append(Comparison(_name(case), ours, None, None, None, False, "not in the second report"))
                continue
            found.append(_compare(_name(case), ours, first, _relative(second, ours, absolute), second, threshold))
    return found


def table(comparisons: Sequence[Comparison]) -> Table:
    """The comparisons for a terminal."""
    made = Table("case", "backend", "after / before", "95 % interval", "verdict")
    for one in comparisons:
        if one.ratio is None:
            made.add_row(one.case, one.backend, "-", "-", f"{'regression: ' if one.regression else ''}{one.reason}")
            continue
        verdict = "regression" if one.regression else "faster" if (one.high or 0) < 1 else "no regression"
        made.add_row(one.case, one.backend, f"{one.ratio:.3f}", f"{one.low:.3f} to {one.high:.3f}", verdict)
    return made


def ratio_interval(
    before: NDArray[np.float64], after: NDArray[np.float64], seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of the medians of two sets of rounds, and its 95 % bootstrap interval (Efron 1979, percentiles).

    Rounds are drawn with replacement, those of each report for themselves, since they were not measured together.
    """
    generator = np.random.default_rng(seed)

    def medians(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.median(generator.choice(values, (RESAMPLES, len(values))), axis=1)

    low, high = np.percentile(medians(after) / medians(before), INTERVAL)
    return float(np.median(after) / np.median(before)), float(low), float(high)


def _compare(
    case: str,
    backend: str,
    first: NDArray[np.float64],
    second: NDArray[np.float64] | None,
    report: CaseReport,
    threshold: float,
) -> Comparison:
    """One comparison of a backend that has a speed in the first report."""
    if second is None:
        row = report.row(backend)
        reason = f"{row.status}: {row.reason}" if row and row.reason else "has no speed in the second report"
        return Comparison(case, backend, None, None, None, True, reason)
    ratio, low, high = ratio_interval(first, second)
    return Comparison(case, backend, ratio, low, high, low > 1 + threshold)


def _relative(case: CaseReport, backend: str, absolute: bool) -> NDArray[np.float64] | None:
    """The backend's median in each round, over eager's in that round; None where one of them has no speed."""
    rows = [case.row(backend), case.row(BACKENDS[BASELINE].name)]
    times = [np.array(row.timing.round_medians_s) if row and row.timing else None for row in rows]
    if times[0] is None or absolute or backend == BACKENDS[BASELINE].name:
        return times[0]
    return None if times[1] is None else times[0] / times[1]


def _key(case: CaseReport) -> tuple[object, ...]:
    """What makes two cases the same."""
    return case.case, case.setting


def _name(case: CaseReport) -> str:
    """The case for people."""
    return f"{case.case}, {case.setting}"
