"""One case from preparation to statistics.

A backend that fails or is wrong is listed with its reason and gets no speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from textwrap import shorten

import torch
from torch import Tensor

from bench.cases import Case
from bench.check import Reference, accuracy, complaint, reference
from bench.measure import Plan, Timing, WarmUp, interleave, summarize, warm_up
from bench.runners import BASELINE, Prepared, Runner
from fastgraph.verify import error


@dataclass(frozen=True)
class Row:
    """One backend in one case. ``status`` is "ok", "wrong" or "failed"; times are in seconds.

    ``reason`` says why there is no timing; ``where`` names the device and the provider or instruction set that really
    ran. ``prepare_s`` is the time to make the backend ready, ``first_call_s`` that of its first call (there
    torch.compile compiles).
    """

    backend: str
    status: str
    reason: str | None = None
    where: str | None = None
    prepare_s: float | None = None
    first_call_s: float | None = None
    max_error: float | None = None
    accuracy: float | None = None
    warmed_up: bool | None = None
    timing: Timing | None = None
    samples_per_s: float | None = None
    ratio_to_eager: float | None = None


@dataclass(frozen=True)
class CaseReport:
    """All backends on one case, and what they were checked against."""

    case: str
    input_shape: tuple[int, ...]
    eager_error: float
    tolerance: float
    rows: tuple[Row, ...]


def run_case(case: Case, runners: Sequence[Runner], plan: Plan) -> CaseReport:
    """Prepares, checks and times every backend on ``case``."""
    with torch.inference_mode():
        truth = reference(case.model, case.x)
    rows: dict[str, Row] = {}
    ready: dict[str, Prepared] = {}
    for runner in runners:
        rows[runner.name], prepared = prepare_and_check(runner, case, truth)
        if prepared is not None:
            ready[runner.name] = prepared
    with torch.inference_mode():
        rows |= timed(case, {name: rows[name] for name in ready}, ready, plan)
    return CaseReport(case.name, tuple(case.x.shape), truth.eager_error, truth.tolerance, tuple(rows.values()))


def prepare_and_check(runner: Runner, case: Case, truth: Reference) -> tuple[Row, Prepared | None]:
    """The backend's row without timing, and the backend itself if it may be timed."""
    row = Row(runner.name, "failed")
    try:
        start = time.perf_counter()
        prepared = runner.prepare(case)  # outside inference mode: what it makes must stay usable everywhere
        row = replace(row, where=prepared.where, prepare_s=time.perf_counter() - start)
        with torch.inference_mode():
            start = time.perf_counter()
            output = prepared.call(case.x)
            row = replace(row, first_call_s=time.perf_counter() - start)
            reason = complaint(output, truth)
            if output.shape == truth.output.shape:
                row = replace(row, max_error=error(output, truth.output))
            if reason is not None:
                return replace(row, status="wrong", reason=reason), None
            return replace(row, status="ok", accuracy=accuracy(prepared.call, case)), prepared
    except Exception as raised:  # whatever a peer raises, the report goes on and says so
        return replace(row, status="failed", reason=_one_line(raised)), None


def timed(case: Case, rows: dict[str, Row], ready: dict[str, Prepared], plan: Plan) -> dict[str, Row]:
    """The rows of the backends that are ``ready``, with their timing; one that raises by now has none."""
    if not ready:
        return {}
    failures: dict[str, Exception] = {}
    calls = {name: partial(_guarded, name, prepared.call, case.x, failures) for name, prepared in ready.items()}
    warm: dict[str, WarmUp] = {name: warm_up(call, plan) for name, call in calls.items()}
    samples = interleave(calls, {name: one.call_s for name, one in warm.items()}, plan)
    timings = {name: summarize(one) for name, one in samples.items() if name not in failures}
    baseline = timings.get(BASELINE.name)
    failed = {name: replace(rows[name], status="failed", reason=_one_line(one)) for name, one in failures.items()}
    return failed | {
        name: replace(
            rows[name],
            warmed_up=warm[name].stable,
            timing=timing,
            samples_per_s=case.batch / timing.median_s,
            ratio_to_eager=baseline.median_s / timing.median_s if baseline else None,
        )
        for name, timing in timings.items()
    }


def _guarded(name: str, call: Callable[[Tensor], Tensor], x: Tensor, failures: dict[str, Exception]) -> None:
    """Calls, until the call raises for the first time: then the reason is kept and nothing happens any more."""
    if name not in failures:
        try:
            call(x)
        except Exception as raised:
            failures[name] = raised


def _one_line(error: Exception) -> str:
    """The kind of the error and the beginning of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {shorten(said[0], 200)}" if said else type(error).__name__
