"""One case from preparation to statistics.

A backend that fails or is wrong is listed with its reason and gets no speed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from textwrap import shorten

import torch

from bench.cases import Case
from bench.check import Reference, accuracy, complaint, max_error, reference
from bench.measure import Plan, Timing, WarmUp, interleave, summarize, warm_up
from bench.runners import BASELINE, Prepared, Runner


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
                row = replace(row, max_error=max_error(output, truth.output))
            if reason is not None:
                return replace(row, status="wrong", reason=reason), None
            return replace(row, status="ok", accuracy=accuracy(prepared.call, case)), prepared
    except Exception as error:  # whatever a peer raises, the report goes on and says so
        return replace(row, status="failed", reason=_one_line(error)), None


def timed(case: Case, rows: dict[str, Row], ready: dict[str, Prepared], plan: Plan) -> dict[str, Row]:
    """The rows of the backends that are ``ready``, with their timing."""
    if not ready:
        return {}
    calls = {name: partial(prepared.call, case.x) for name, prepared in ready.items()}
    warm: dict[str, WarmUp] = {name: warm_up(call, plan) for name, call in calls.items()}
    samples = interleave(calls, {name: one.call_s for name, one in warm.items()}, plan)
    timings = {name: summarize(one) for name, one in samples.items()}
    baseline = timings.get(BASELINE.name)
    return {
        name: replace(
            rows[name],
            warmed_up=warm[name].stable,
            timing=timing,
            samples_per_s=case.batch / timing.median_s,
            ratio_to_eager=baseline.median_s / timing.median_s if baseline else None,
        )
        for name, timing in timings.items()
    }


def _one_line(error: Exception) -> str:
    """The kind of the error and the beginning of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {shorten(said[0], 200)}" if said else type(error).__name__
