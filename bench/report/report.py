"""The report: everything that was measured, as JSON with a version, and read back from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastgraph.bench.backends import Setting
from fastgraph.bench.ceilings.limit import Limit
from fastgraph.bench.ceilings.work import Work
from fastgraph.bench.plan import Plan
from fastgraph.bench.ratio import Ratio
from fastgraph.bench.report.html_tables import case_tables
from fastgraph.bench.results import CaseReport, Row
from fastgraph.bench.text import finite
from fastgraph.bench.timing import Timing, Usage

SCHEMA_VERSION = 3
"""Of ``report.json``; ``report.schema.json`` here describes it. It grows when old readers would misread it."""

RATIOS = ("ratio_to_peer", "ratio_to_eager")


class ReportError(Exception):
    """A file that is no report, or one of another schema version."""


@dataclass(frozen=True)
class Report:
    """What one run measured: the cases, the machine, and the command that repeats it.

    ``modelled`` holds the modelled floors on a GPU (``ceilings.roofline``), which are no measurements; empty without
    ``--model-gpu``. ``complete`` is False where the run was stopped before its end. ``absent``: backends that were
    asked for and are not installed, with the pip line.
    """

    command: str
    date: str
    machine: dict[str, Any]
    plan: Plan
    cases: tuple[CaseReport, ...]
    modelled: tuple[dict[str, Any], ...] = ()
    complete: bool = True
    absent: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """The tidy table: one flat dictionary for each case and backend, ready for ``pandas.DataFrame``."""
        return [_flat(case, row) for case in self.cases for row in case.rows]

    def to_json(self) -> str:
        """JSON text; times in seconds, sizes in bytes, what is not finite as null."""
        content = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that ``to_json`` wrote.

        Raises:
            ReportError: it is no report, or of another schema version.
        """
        try:
            content = json.loads(text)
            version = content.pop("schema_version")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ReportError("it is no report of python -m bench") from error
        if version != SCHEMA_VERSION:
            raise ReportError(f"its schema version is {version}; this bench reads version {SCHEMA_VERSION}")
        try:
            cases = tuple(_case(case) for case in content.pop("cases"))
            plan = Plan(**content.pop("plan"))
            return cls(
                **content
                | {"plan": plan, "cases": cases, "modelled": tuple(content["modelled"])}
                | {"absent": tuple(content["absent"])}
            )
        except (KeyError, TypeError) as error:
            raise ReportError(f"it is no complete report: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """The report in a file; ReportError, naming the file, where there is none."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ReportError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ReportError(f"{path}: it is no report of python -m bench") from error
        except ReportError as error:
            raise ReportError(f"{path}: {error}") from error

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        return case_tables(self.cases)


def settings(cases: Sequence[CaseReport]) -> list[Setting]:
    """The settings that occur, in order."""
    return list(dict.fromkeys(case.setting for case in cases))


def _flat(case: CaseReport, row: Row) -> dict[str, Any]:
    """One row of the tidy table."""
    timing, limit, apart = row.timing, row.limit, ("timing", "limit", "usage", *RATIOS)
    return {
        "model": case.model,
        "batch": case.batch,
        **asdict(case.setting),
        **{f.name: getattr(row, f.name) for f in fields(Row) if f.name not in apart},
        **{f.name: getattr(timing, f.name, None) for f in fields(Timing) if not f.name.startswith("round_")},
        **{name: ratio.value if (ratio := getattr(row, name)) else None for name in RATIOS},
        **{f"{name}_low": ratio.low if (ratio := getattr(row, name)) else None for name in RATIOS},
        **{f"{name}_high": ratio.high if (ratio := getattr(row, name)) else None for name in RATIOS},
        **{f.name: getattr(row.usage, f.name, None) for f in fields(Usage)},
        "calls_per_s": timing.calls_per_s if timing else None,
        "flops": case.work.flops if case.work else None,
        "bytes": case.work.bytes if case.work else None,
        "binding": limit.binding if limit else None,
        "level": limit.level if limit else None,
        "share_of_ceiling": limit.share if limit else None,
        "others": case.others,
    }


def _case(content: dict[str, Any]) -> CaseReport:
    """A case read back."""
    return CaseReport(
        **content
        | {
            "input_shape": tuple(content["input_shape"]),
            "setting": Setting(**content["setting"]),
            "work": Work(**content["work"]) if content["work"] else None,
            "ceilings": {name: tuple(values) for name, values in content["ceilings"].items()},
            "rows": tuple(_row(row) for row in content["rows"]),
        }
    )


def _row(content: dict[str, Any]) -> Row:
    """A row read back."""
    timing = content["timing"]
    if timing is not None:
        rounds = {name: tuple(timing[name]) for name in ("round_medians_s", "round_calls_per_s")}
        timing = Timing(**timing | rounds)
    kinds = {"limit": Limit, "usage": Usage} | dict.fromkeys(RATIOS, Ratio)
    read = {name: kind(**content[name]) if content[name] else None for name, kind in kinds.items()}
    return Row(**content | read | {"timing": timing})
