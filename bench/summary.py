"""The report at a glance: in each case the fastest backend, ours, and by how much; the cases that we lose too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastgraph.bench.backends import BACKENDS, BASELINE, OURS
from fastgraph.bench.ratio import Ratio
from fastgraph.bench.session import CaseReport, Row
from fastgraph.bench.text import duration

SUMMARY = ("case", "x peer", "fastgraph", "best peer", "its median", "samples/s", "x eager", "of limit")
OURS_NAME, BASELINE_NAME = BACKENDS[OURS].name, BACKENDS[BASELINE].name
OUR_NAMES = {backend.name for backend in BACKENDS.values() if backend.ours}
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
        samples = self.ours.samples_per_s if self.ours else None
        to_eager = self.ours.ratio_to_eager if self.ours else None
        return (
            self.label,
            str(self.ratio or "-"),
            _median(self.ours),
            self.peer.backend if self.peer else "-",
            _median(self.peer),
            f"{samples:,.0f}" if samples else "-",
            str(to_eager or "-") + (MARK if self.faults and to_eager else ""),
            str((self.ours and self.ours.limit) or "-"),
        )


def timed_cases(cases: Sequence[CaseReport]) -> list[CaseReport]:
    """Those in which somebody has a speed."""
    return [case for case in cases if any(row.timing for row in case.rows)]


def summaries(cases: Sequence[CaseReport]) -> list[Summary]:
    """One for each of ``timed_cases``."""
    label = labels(cases)
    return [_summary(label(case), case) for case in timed_cases(cases)]


def glance(found: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of the table at a glance, without columns that have no figure in this kind of run."""
    lines = [one.cells() for one in found]
    shown = [i for i in range(len(SUMMARY)) if any(line[i] != "-" for line in lines)]
    return [SUMMARY[i] for i in shown], [[line[i] for i in shown] for line in lines]


def labels(cases: Sequence[CaseReport]) -> Callable[[CaseReport], str]:
    """What one of these cases is called: the setting is named where there are several."""
    several = len({case.setting for case in cases}) > 1
    return lambda case: f"{case.case}, {case.setting}" if several else case.case


def verdict(found: Sequence[Summary]) -> str:
    """One sentence: where ours is the fastest, and where it is not."""
    ratios = {one.label: one.ratio for one in found if one.ratio is not None}
    if not ratios:
        return ""
    won = sum(ratio.low > 1 for ratio in ratios.values())
    lost = [f"{label} ({ratio.value:.2f})" for label, ratio in ratios.items() if ratio.high < 1]
    level = [f"{label} ({ratio.value:.2f})" for label, ratio in ratios.items() if ratio.low <= 1 <= ratio.high]
    said = f"fastgraph is ahead of the best peer in {won} of {len(ratios)} cases"
    said += f"; behind in {', '.join(lost)}" if lost else ""
    return f"{said}{'; level, by the interval, in ' + ', '.join(level) if level else ''}."


def remarks(found: Sequence[Summary]) -> list[str]:
    """What has to be known beside the figures."""
    said = [verdict(found), "In brackets the 95 % interval over the rounds."]
    if any(one.faults for one in found):
        said.append(f"{MARK} {FAULTS}")
    return [one for one in said if one]


def _summary(label: str, case: CaseReport) -> Summary:
    rows = {row.backend: row for row in case.rows if row.timing}
    speeds = {name: row.timing.calls_per_s for name, row in rows.items() if row.timing and name not in OUR_NAMES}
    peer = max(speeds, key=lambda name: speeds[name], default="")
    return Summary(label, rows.get(BASELINE_NAME), rows.get(peer), rows.get(OURS_NAME))


def _median(row: Row | None) -> str:
    if row and row.timing and row.timing.round_calls_per_s:
        return f"{row.timing.calls_per_s:,.0f}/s"
    return duration(row.timing.median_s if row and row.timing else None)
