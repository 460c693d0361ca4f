"""The tables of the page and of a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fastgraph.bench.backends import OURS_NAME
from fastgraph.bench.report.cells import COLUMNS, Cell, caption, cells, note, title
from fastgraph.bench.results import CaseReport, Row

BESIDE = ("cpu a call", "max error", "mean error", "accuracy", "prepare", "first call", "memory")


def case_tables(cases: Sequence[CaseReport]) -> str:
    """The tables of each case."""
    return "\n".join(_case_table(case) for case in cases)


def plain_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table that does not sort."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _case_table(case: CaseReport) -> str:
    """All rows of a case: what its calls took, and folded away what they cost beside."""
    return (
        f'<h3>{escape(title(case))}</h3><p class="soft">{escape(caption(case))}</p>'
        + _rows_table(case, [name for name in COLUMNS if name not in BESIDE])
        + f"<details><summary>{escape(', '.join(BESIDE))}</summary>{_rows_table(case, BESIDE)}</details>"
    )


def _rows_table(case: CaseReport, names: Sequence[str]) -> str:
    """The rows' columns of these names in which somebody has a figure, as a table that a click on a head sorts."""
    figures = [cells(row) for row in case.rows]
    shown = [name for name in names if any(one[name].text != "-" for one in figures)]
    head = "".join(f'<th scope="col"><button>{escape(name)}</button></th>' for name in ("backend", *shown))
    body = "\n".join(_row(row, [one[name] for name in shown]) for row, one in zip(case.rows, figures, strict=True))
    return (
        '<div class="scroll" tabindex="0"><table class="sortable"><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(row: Row, figures: Sequence[Cell]) -> str:
    """One line of a table: the backend with what is to be said of it, and its figures."""
    kind = "ours" if row.backend == OURS_NAME else "out" if row.timing is None else ""
    values = ["" if one.value is None else one.value for one in figures]
    line = "".join(f'<td data-value="{v}">{escape(one.text)}</td>' for v, one in zip(values, figures, strict=True))
    about = f"<small>{escape(note(row))}</small>"
    return f'<tr class="{kind}"><th scope="row">{escape(row.backend)}{about}</th>{line}</tr>'
