"""The report: a table a case for people, ``report.json`` for machines, and the machine that it was measured on."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from rich.table import Table

import fastgraph
from bench.measure import Plan
from bench.run import CaseReport, Row


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, threads, instruction set, versions, commit (None outside a checkout)."""
    return {
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "isa": fastgraph.cpu_capability(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "commit": _commit(),
    }


def machine_lines(about: dict[str, Any]) -> list[str]:
    """The machine for people: processor, versions, CUDA."""
    cuda = about["cuda"]
    versions = ", ".join(f"{name} {about[name]}" for name in ("python", "torch", "onnxruntime"))
    return [
        f"{about['cpu']}, {about['threads']} threads, {about['isa']}; {versions}; commit {about['commit'] or '-'}",
        f"CUDA: {cuda} is present, but this report is of the CPU" if cuda else "CUDA: not present, CPU only",
    ]


def table(report: CaseReport) -> Table:
    """The case as a table: one row a backend, those without a speed included."""
    title = (
        f"{report.case}: input {list(report.input_shape)}, error allowed {report.tolerance:.1e} (eager's own "
        f"{report.eager_error:.1e})"
    )
    made = Table(title=title, title_justify="left")
    made.add_column("backend")
    for name in ("median", "p90", "samples/s", "x eager", "calls", "max error", "accuracy", "prepare", "first call"):
        made.add_column(name, justify="right")
    made.add_column("note")
    for row in report.rows:
        made.add_row(*_cells(row))
    return made


def as_json(reports: Sequence[CaseReport], about: dict[str, Any], plan: Plan, command: str) -> str:
    """Everything that was measured, as JSON text; times in seconds, what is not finite as null."""
    content = {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": about,
        "plan": asdict(plan),
        "cases": [asdict(report) for report in reports],
    }
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def duration(seconds: float | None) -> str:
    """``seconds`` to three or four digits in the unit that fits; "-" when None."""
    if seconds is None:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _cells(row: Row) -> list[str]:
    """The row's text, column by column; "-" where there is nothing to tell."""
    timing = row.timing
    note = [text for text in (row.where, row.reason and f"{row.status}: {row.reason}") if text]
    if row.warmed_up is False:
        note.append("not stable after warm-up")
    return [
        row.backend,
        duration(timing.median_s if timing else None),
        duration(timing.p90_s if timing else None),
        f"{row.samples_per_s:,.0f}" if row.samples_per_s else "-",
        f"{row.ratio_to_eager:.2f}" if row.ratio_to_eager else "-",
        f"{timing.calls:,}" if timing else "-",
        "-" if row.max_error is None else f"{row.max_error:.1e}",
        "-" if row.accuracy is None else f"{row.accuracy:.2%}",
        duration(row.prepare_s),
        duration(row.first_call_s),
        "; ".join(note),
    ]


def _finite(value: Any) -> Any:
    """``value`` with None for NaN and infinity, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit(root: Path = Path(__file__).parents[1]) -> str | None:
    """The commit of the checkout at ``root``, "-dirty" where files differ; None where there is none or no git."""
    if not (root / ".git").exists():
        return None
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=root, capture_output=True, text=True
        )
    except OSError:
        return None
    return said.stdout.strip() or None
