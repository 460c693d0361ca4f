"""The report at a glance: in each case the fastest backend, ours, and by how much; the cases that we lose too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median

from fastgraph.bench.backends import BACKENDS, BASELINE_NAME, OURS_NAME
from fastgraph.bench.ratio import Ratio
from fastgraph.bench.report.cells import cells
from fastgraph.bench.results import CaseReport, Row

SUMMARY = ("case", "x peer", "fastgraph", "best peer", "its median", "samples/s", "x eager", "of limit", "fused")
OUR_NAMES = {backend.name for backend in BACKENDS.values() if backend.is_ours}
NOBODY = Row("", "failed")  # in a case in which one of them has no speed
MARK = "*"
FAULTS = (
    "eager takes new memory from the system in every call and pays its page faults: what they cost moves from run to "
    "run, and this ratio with it."
)


@dataclass(frozen=True)
class Summary:
    """One case: eager, the fastest backend that is not ours, and ours; None where one of them has no speed."""

    label: str
    eager: Row | None
    peer: Row | None
    ours: Row | None

    @property
    def ratio(self) -> Ratio | None:
        """How many times as fast as the best peer ours is; below 1 we lose."""
        return self.ours.ratio_to_peer if self.ours else None

    @property
    def faults(self) -> bool:
        """Whether eager's time is in good part that of page faults, which moves from run to run."""
        return bool(self.eager and self.eager.usage and self.eager.usage.faults)

    def cells(self) -> tuple[str, ...]:
        """The figures in the order of ``SUMMARY``."""
        ours = cells(self.ours or NOBODY)
        to_eager = ours["x eager"].text
        return (
            self.label,
            ours["x peer"].text,
            _speed(self.ours),
            self.peer.backend if self.peer else "-",
            _speed(self.peer),
            ours["samples/s"].text,
            f"{to_eager}{MARK}" if self.faults and to_eager != "-" else to_eager,
            ours["of limit"].text,
            ours["fused"].text,
        )


def timed_cases(cases: Sequence[CaseReport]) -> list[CaseReport]:
    """Those in which somebody has a speed."""
    return [case for case in cases if case.is_timed]


def median_ceilings(cases: Sequence[CaseReport]) -> dict[str, float]:
    """The ceilings over all rounds of all cases."""
    names = dict.fromkeys(name for case in cases for name in case.ceilings)
    return {name: median(v for case in cases for v in case.ceilings.get(name, ())) for name in names}


def summaries(cases: Sequence[CaseReport]) -> list[Summary]:
    """One for each of ``timed_cases``."""
    label = labels(cases)
    return [_summary(label(case), case) for case in timed_cases(cases)]


def glance(overview: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of the table at a glance, without columns that have no figure in this kind of run."""
    lines = [one.cells() for one in overview]
    shown = [i for i in range(len(SUMMARY)) if any(line[i] != "-" for line in lines)]
    return [SUMMARY[i] for i in shown], [[line[i] for i in shown] for line in lines]


def labels(cases: Sequence[CaseReport]) -> Callable[[CaseReport], str]:
    """What one of these cases is called: the setting is named where there are several."""
    several = len({case.setting for case in cases}) > 1
    return lambda case: f"{case.case}, {case.setting}" if several else case.case


def verdict(overview: Sequence[Summary]) -> str:
    """One sentence: where ours is the fastest, and where it is not."""
    ratios = {one.label: one.ratio for one in overview if one.ratio is not None}
    if not ratios:
        return ""
    won = sum(ratio.low > 1 for ratio in ratios.values())
    lost = [f"{label} ({ratio.value:.2f})" for label, ratio in ratios.items() if ratio.high < 1]
    level = [f"{label} ({ratio.value:.2f})" for label, ratio in ratios.items() if ratio.low <= 1 <= ratio.high]
    sentence = f"fastgraph is ahead of the best peer in {won} of {len(ratios)} cases"
    sentence += f"; behind in {', '.join(lost)}" if lost else ""
    return f"{sentence}{'; level, by the interval, in ' + ', '.join(level) if level else ''}."


def standing(overview: Sequence[Summary]) -> str:
    """One sentence over several cases: the mean against the best peer, and where ours is slower than eager."""
    to_peer = [one.ratio.value for one in overview if one.ratio is not None]
    to_eager = [(one.label, one.ours.ratio_to_eager) for one in overview if one.ours and one.ours.ratio_to_eager]
    if len(to_peer) < 2:
        return ""
    below = [f"{label} ({ratio.value:.2f})" for label, ratio in to_eager if ratio.high < 1]
    names = f": {', '.join(below)}" if below else ""
    eager = f"; below eager in {len(below)} of {len(to_eager)}{names}" if to_eager else ""
    return f"Geometric mean of x peer over {len(to_peer)} cases {geometric_mean(to_peer):.2f}{eager}."


def remarks(overview: Sequence[Summary], marked: bool = True) -> list[str]:
    """What has to be known beside the figures; ``marked`` where the column with the mark is shown."""
    sentences = [verdict(overview), standing(overview), "In brackets the 95 % interval over the rounds."]
    if marked and any(one.faults for one in overview):
        sentences.append(f"{MARK} {FAULTS}")
    return [one for one in sentences if one]


def _summary(label: str, case: CaseReport) -> Summary:
    rows = {row.backend: row for row in case.rows if row.timing}
    speeds = {name: row.timing.calls_per_s for name, row in rows.items() if row.timing and name not in OUR_NAMES}
    peer = max(speeds, key=lambda name: speeds[name], default="")
    return Summary(label, rows.get(BASELINE_NAME), rows.get(peer), rows.get(OURS_NAME))


def _speed(row: Row | None) -> str:
    """Calls a second where there are several processes, otherwise the median."""
    figures = cells(row or NOBODY)
    calls = figures["calls/s"].text
    return figures["median"].text if calls == "-" else f"{calls}/s"
