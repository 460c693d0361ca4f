"""The report at a glance: in each case the fastest backend, ours, and by how much; the cases that we lose too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastgraph.bench.backends import BACKENDS, BASELINE, OURS
from fastgraph.bench.session import CaseReport, Row
from fastgraph.bench.text import duration

SUMMARY = ("case", "best peer", "its median", "fastgraph", "x eager", "x peer", "of limit")
OURS_NAME, BASELINE_NAME = BACKENDS[OURS].name, BACKENDS[BASELINE].name


@dataclass(frozen=True)
class Summary:
    """One case: eager, the fastest backend that is not ours, and ours; None where one of them has no speed."""

    label: str
    eager: Row | None
    peer: Row | None
    ours: Row | None

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the best peer ours is; below 1 we lose."""
        return _ratio(self.peer, self.ours)

    def cells(self) -> tuple[str, ...]:
        """The figures in the order of ``SUMMARY``."""
        limit = self.ours.limit if self.ours else None
        return (
            self.label,
            self.peer.backend if self.peer else "-",
            _median(self.peer),
            _median(self.ours),
            _times(_ratio(self.eager, self.ours)),
            _times(self.ratio),
            f"{limit.share:.0%} {limit.binding}" if limit else "-",
        )


def timed_cases(cases: Sequence[CaseReport]) -> list[CaseReport]:
    """Those in which somebody has a speed."""
    return [case for case in cases if any(row.timing for row in case.rows)]


def summaries(cases: Sequence[CaseReport]) -> list[Summary]:
    """One for each of ``timed_cases``."""
    label = labels(cases)
    return [_summary(label(case), case) for case in timed_cases(cases)]


def labels(cases: Sequence[CaseReport]) -> Callable[[CaseReport], str]:
    """What one of these cases is called: the setting is named where there are several."""
    several = len({case.setting for case in cases}) > 1
    return lambda case: f"{case.case}, {case.setting}" if several else case.case


def verdict(found: Sequence[Summary]) -> str:
    """One sentence: where ours is the fastest, and where it is not."""
    compared = [one for one in found if one.ratio is not None]
    lost = [f"{one.label} ({one.ratio:.2f})" for one in compared if (one.ratio or 0) < 1]
    if not compared:
        return ""
    won = f"fastgraph is ahead of the best peer in {len(compared) - len(lost)} of {len(compared)} cases"
    return won + (f"; behind in {', '.join(lost)}." if lost else ".")


def _summary(label: str, case: CaseReport) -> Summary:
    timed = {row.backend: row.timing.median_s for row in case.rows if row.timing}
    peers = [name for name in timed if OURS_NAME not in name]  # what holds our kernels is no peer
    peer = min(peers, key=lambda name: timed[name], default="")
    by_name = {row.backend: row for row in case.rows if row.timing}
    return Summary(label, by_name.get(BASELINE_NAME), by_name.get(peer), by_name.get(OURS_NAME))


def _ratio(slow: Row | None, fast: Row | None) -> float | None:
    if slow is None or fast is None or slow.timing is None or fast.timing is None:
        return None
    return slow.timing.median_s / fast.timing.median_s


def _median(row: Row | None) -> str:
    return duration(row.timing.median_s if row and row.timing else None)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
