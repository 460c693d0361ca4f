"""The cells of a grid in a few lines: their mean against the best peer, and the worst."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean, median
from typing import Any

from fastgraph.bench.perf.result import Result, short_mark
from fastgraph.bench.results import BUSY

WORST = 5  # cells that are listed


def summary(
    title: str, results: Sequence[Result], wanted: float, counting: Sequence[Result], which: str = "", each: str = ""
) -> tuple[str, dict[str, Any]] | None:
    """The lines, and what goes into ``perf.json``; None where no cell has a speed.

    ``wanted`` is asked of the geometric mean. ``counting``: the cells whose share of the ceiling counts, ``which`` and
    ``each`` in words which they are and what is asked of each.
    """
    ratios = {result.report.case: result.ratio for result in results if result.ratio}
    shares = {result.report.case: result.share for result in counting if result.share is not None}
    if not ratios:
        return None
    mean, threads = geometric_mean(ratios.values()), results[0].threads
    lines = [
        f"{title}, {threads} threads: best peer / ours {mean:.2f} ({wanted:.2f}){short_mark(mean < wanted)} "
        f"as geometric mean of {len(ratios)} cases; worst {_worst(ratios, '.2f')}"
    ]
    if shares:
        middle = f"{median(shares.values()):.0%}{each} as median of {len(shares)} cases"
        lines.append(f"  {' '.join(filter(None, ('fma', which, middle)))}; worst {_worst(shares, '.0%')}")
    others = max((result.report.others or 0.0) for result in results)
    if others > BUSY:
        lines.append(f"  doubtful: other processes took up to {others:.0%} of the processors")
    return "\n".join(lines), {"threads": threads, "geometric_mean": mean, "ratios": ratios, "shares": shares}


def _worst(figures: dict[str, float], form: str) -> str:
    """The smallest of them by cell."""
    lowest = sorted(figures, key=lambda cell: figures[cell])[:WORST]
    return "; ".join(f"{figures[cell]:{form}} {cell}" for cell in lowest)
