"""CPU and CUDA side by side: for each case and setting, fastgraph and the fastest of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from fastgraph.bench.backends import BACKENDS, OURS
from fastgraph.bench.session import CaseReport, Row
from fastgraph.bench.text import duration

SIDES = ("case", "setting", "backend", "median", "samples/s")


@dataclass(frozen=True)
class Side:
    """One backend of one case at one setting; seconds a call, samples a second."""

    case: str
    setting: str
    backend: str
    median_s: float
    samples_per_s: float


def side_by_side(cases: Sequence[CaseReport]) -> list[Side]:
    """Ours and the fastest, by case and then setting; empty where only one kind of device was measured."""
    if len({case.setting.device for case in cases}) < 2:
        return []
    found = []
    for name in dict.fromkeys(case.case for case in cases):
        for case in cases:
            if case.case == name:
                found += [_side(case, row) for row in _ours_and_fastest(case)]
    return found


def sides_table(sides: Sequence[Side]) -> Table:
    """The comparison for a terminal."""
    made = Table(*SIDES, title="CPU and CUDA side by side", title_justify="left")
    for side in sides:
        figures = (duration(side.median_s), f"{side.samples_per_s:,.0f}")
        made.add_row(side.case, side.setting, side.backend, *figures)
    return made


def _ours_and_fastest(case: CaseReport) -> list[Row]:
    """The rows of fastgraph and of the fastest, once where they are the same."""
    timed = [row for row in case.rows if row.timing and row.samples_per_s]
    if not timed:
        return []
    ours = [row for row in timed if row.backend == BACKENDS[OURS].name]
    fastest = max(timed, key=lambda row: row.samples_per_s or 0)
    return list(dict.fromkeys([*ours, fastest]))


def _side(case: CaseReport, row: Row) -> Side:
    assert row.timing is not None
    assert row.samples_per_s is not None
    return Side(case.case, str(case.setting), row.backend, row.timing.median_s, row.samples_per_s)
