"""``python -m bench``: throughput of models on real data, every backend checked before it is timed.

In a notebook, after ``from fastgraph.bench import cases, run``:
``run(cases.deep([1, 16]), ["eager", "onnxruntime", "fastgraph"])``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgraph.bench.backends import Setting
    from fastgraph.bench.cases import Case
    from fastgraph.bench.plan import Plan
    from fastgraph.bench.report.report import Report


def run(
    cases: Sequence[Case],
    backends: Sequence[str] = ("eager", "fastgraph"),
    *,
    settings: Sequence[Setting] = (),
    plan: Plan | None = None,
    verbose: bool = False,
) -> Report:
    """Measures ``cases`` with ``backends`` and returns the report; nothing is written.

    Args:
        cases: from ``bench.cases``; ``bench.cases.own(name, model, x)`` makes one of a module of your own.
        backends: names of ``bench.backends.BACKENDS``.
        settings: dtype, threads and device; by default fp32 on the CPU with PyTorch's number of threads.
        plan: how long to measure; by default ``bench.plan.QUICK``.
        verbose: prints what is being done, and each case's table.

    Returns:
        The report: ``rows()`` is its tidy table, ``to_json()`` its file. Ctrl-C ends the run with what there is.

    Raises:
        ValueError: an unknown backend, or no case.
    """
    import io

    import torch
    from rich.console import Console

    from fastgraph.bench.backends import BACKENDS, Setting
    from fastgraph.bench.machine import machine
    from fastgraph.bench.plan import QUICK
    from fastgraph.bench.runs import Run, installed, measure

    unknown = [name for name in backends if name not in BACKENDS]
    if unknown or not backends:
        raise ValueError(f"backends: needs some of {', '.join(BACKENDS)}; got {', '.join(unknown) or 'none'}")
    if not cases:
        raise ValueError("cases: needs at least one; got none")
    console = Console() if verbose else Console(file=io.StringIO())
    chosen = tuple(settings) or (Setting(threads=torch.get_num_threads()),)
    here, absent = installed(backends)
    asked = Run(tuple(cases), here, chosen, plan or QUICK, "fastgraph.bench.run(..)", absent=absent)
    return measure(asked, machine(), console)
