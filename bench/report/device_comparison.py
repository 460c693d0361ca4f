"""CPU and CUDA side by side: for each case and setting, fastgraph and the fastest of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastgraph.bench.backends import OURS_NAME
from fastgraph.bench.report.cells import cells
from fastgraph.bench.results import CaseReport, Row

TITLE = "CPU and CUDA side by side"
HEAD = ("case", "setting", "backend", "median", "samples/s")


class DeviceLine(NamedTuple):
    """One backend of one case at one setting, in the order of ``HEAD``."""

    case: str
    setting: str
    backend: str
    median: str
    samples_per_s: str


def device_comparison(cases: Sequence[CaseReport]) -> list[DeviceLine]:
    """Ours and the fastest, by case and then setting; empty where only one kind of device was measured."""
    if len({case.setting.device for case in cases}) < 2:
        return []
    lines = []
    for name in dict.fromkeys(case.case for case in cases):
        for case in cases:
            if case.case == name:
                lines += [_line(case, row) for row in _ours_and_fastest(case)]
    return lines


def _ours_and_fastest(case: CaseReport) -> list[Row]:
    """The rows of fastgraph and of the fastest, once where they are the same."""
    timed = [row for row in case.rows if row.timing and row.samples_per_s]
    if not timed:
        return []
    ours = [row for row in timed if row.backend == OURS_NAME]
    fastest = max(timed, key=lambda row: row.samples_per_s or 0)
    return list(dict.fromkeys([*ours, fastest]))


def _line(case: CaseReport, row: Row) -> DeviceLine:
    figures = cells(row)
    return DeviceLine(case.case, str(case.setting), row.backend, figures["median"].text, figures["samples/s"].text)
