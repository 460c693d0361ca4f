"""From cases and backends to results: prepares, checks and times every backend on every case.

A backend that cannot, fails or is wrong is listed with its reason and gets no speed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

import torch

from fastgraph.bench.backends import BACKENDS, BASELINE, Backend, Setting
from fastgraph.bench.cases import Case
from fastgraph.bench.ceilings import MIB, Ceilings, cache_bytes
from fastgraph.bench.check import Reference, complaint, mean_error, reference
from fastgraph.bench.contestant import Contestant, Ready
from fastgraph.bench.crew import Worker, WorkerFailed
from fastgraph.bench.limits import Limit, limit
from fastgraph.bench.measure import (
    MIN_ROUNDS,
    Plan,
    Seconds,
    Timing,
    affordable_rounds,
    block_calls,
    block_limit_s,
    interleave,
    summarize,
)
from fastgraph.bench.measure import WarmUp as Warm
from fastgraph.bench.neighbours import processors
from fastgraph.bench.nursery import Nursery
from fastgraph.bench.work import Work, work_of
from fastgraph.verify import error

PREPARE_LIMIT_S = 300.0  # max-autotune on two cores takes up to a minute
BLOCK_LIMIT_S = 60.0  # on top of twenty times what the block should take
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One backend in one case. ``status`` is "ok", "wrong", "failed", "not possible" or "left out".

    Times are in seconds. ``reason`` says why there is no timing; ``where`` names the device and the provider or
    instruction set that really ran. ``prepare_s`` is None where an earlier batch size's preparation serves.
    ``peak_bytes`` is by how much the process had grown at most while it was timed.
    """

    backend: str
    status: str
    reason: str | None = None
    where: str | None = None
    prepare_s: float | None = None
    first_call_s: float | None = None
    max_error: float | None = None
    mean_error: float | None = None
    accuracy: float | None = None
    warmed_up: bool | None = None
    peak_bytes: int | None = None
    timing: Timing | None = None
    samples_per_s: float | None = None
    ratio_to_eager: float | None = None
    limit: Limit | None = None


@dataclass(frozen=True)
class CaseReport:
    """All backends on one case, what they were checked against, and the ceilings measured in the same rounds.

    ``others`` is the share of the processors, 0..1, that other processes took during the rounds; None if unknown.
    """

    case: str
    model: str
    batch: int
    input_shape: tuple[int, ...]
    setting: Setting
    eager_error: float
    tolerance: float
    work: Work | None
    rows: tuple[Row, ...]
    ceilings: dict[str, tuple[float, ...]] = field(default_factory=dict)
    others: float | None = None

    def row(self, backend: str) -> Row | None:
        """The backend's row, by its name in the report."""
        return next((row for row in self.rows if row.backend == backend), None)


@dataclass(frozen=True)
class CeilingBlocks:
    """Which ceilings to measure in every round, and for how many seconds each."""

    names: tuple[str, ...]
    seconds: float = 0.02


class Session:
    """The workers of one setting, one a backend, and one for the ceilings."""

    def __init__(self, backends: Mapping[str, type[Backend]], setting: Setting, stack: ExitStack) -> None:
        self.setting, self.backends, self._stack = setting, backends, stack
        self._refusals = {name: one().refusal(setting) for name, one in backends.items()}
        self._nursery = Nursery(setting.threads)
        stack.callback(self._nursery.close)
        self._workers = {
            name: self._start(Contestant, one, setting)
            for name, one in backends.items()
            if self._refusals[name] is None
        }
        self._ceilings: Worker | None = None  # started when ceilings are first asked for

    def _start(self, make: Callable[..., object], *arguments: object) -> Worker:
        worker = Worker(self._nursery, make, *arguments)
        self._stack.callback(worker.close)
        return worker

    def run(
        self,
        case: Case,
        plan: Plan,
        ceilings: CeilingBlocks | None = None,
        contender_ratio: float | None = None,
        progress: Progress = lambda text: None,
        left_out: Mapping[str, str] = MappingProxyType({}),
    ) -> CaseReport:
        """Measures one case, without the backends that are ``left_out``, which are listed with the reason given.

        A backend that is slower than the fastest by more than ``contender_ratio`` takes part in the first three rounds
        only; None gives everybody all rounds.
        """
        progress(f"{case.name}: reference")
        built = case.build()
        truth, work = reference(built, self.setting), work_of(built, self.setting)
        rows = {}
        for name, backend in self.backends.items():
            if name in left_out:
                rows[name] = Row(backend.name, "left out", left_out[name])
                continue
            progress(f"{case.name}: {backend.name}")
            rows[name] = self._prepared(name, case, truth)
        ready = [name for name, row in rows.items() if row.status == "ok"]
        warm: dict[str, Warm] = {}
        for name in ready:
            try:
                warm[name] = self._workers[name].ask("warm_up", plan, limit_s=BLOCK_LIMIT_S + 20 * plan.warm_up_s)
            except WorkerFailed as failure:
                rows[name] = replace(rows[name], status="failed", reason=str(failure))
        progress(f"{case.name}: rounds")
        before = processors(self._pids())
        found = self._rounds(rows, warm, plan, ceilings, work.weight_bytes if work else 0, contender_ratio)
        after = processors(self._pids())
        self._add_timings(rows, warm, found[0], case.batch, plan.mode)
        if work is not None:
            self._add_limits(rows, work, found[1])
        return CaseReport(
            case=case.name,
            model=case.model,
            batch=case.batch,
            input_shape=tuple(built.x.shape),
            setting=self.setting,
            eager_error=truth.eager_error,
            tolerance=truth.tolerance,
            work=work,
            rows=tuple(rows.values()),
            ceilings=found[1],
            others=after.others_since(before) if before and after else None,
        )

    def _pids(self) -> list[int]:
        """The processes of this session."""
        workers = [*self._workers.values(), *([self._ceilings] if self._ceilings else [])]
        return [os.getpid(), *(worker.pid for worker in workers if worker.pid is not None)]

    def call(self, name: str, method: str, *arguments: object) -> object:
        """A method of a backend's worker, by the backend's option name; raises WorkerFailed."""
        return self._workers[name].ask(method, *arguments, limit_s=PREPARE_LIMIT_S)

    def _prepared(self, name: str, case: Case, truth: Reference) -> Row:
        """The backend's row without timing: made ready, run once, checked."""
        row = Row(self.backends[name].name, "failed")
        if self._refusals[name] is not None:
            return replace(row, status="not possible", reason=self._refusals[name])
        worker = self._workers[name]
        try:
            ready: Ready = worker.ask("prepare", case, limit_s=PREPARE_LIMIT_S)
            row = replace(row, where=ready.where, prepare_s=ready.prepare_s, first_call_s=ready.first_call_s)
            output = torch.from_numpy(ready.output)
            reason = complaint(output, ready.dtype, truth, self.setting)
            if output.shape == truth.output.shape:
                row = replace(row, max_error=error(output, truth.output), mean_error=mean_error(output, truth.output))
            if reason is not None:
                return replace(row, status="wrong", reason=reason)
            return replace(row, status="ok", accuracy=worker.ask("accuracy", limit_s=PREPARE_LIMIT_S))
        except WorkerFailed as failure:
            return replace(row, status="failed", reason=str(failure))

    def _rounds(
        self,
        rows: dict[str, Row],
        warm: Mapping[str, Warm],
        plan: Plan,
        ceilings: CeilingBlocks | None,
        weight_bytes: int,
        contender_ratio: float | None,
    ) -> tuple[dict[str, list[Seconds]], dict[str, tuple[float, ...]]]:
        """The seconds of each call by backend and round, and the ceilings by name and round."""
        if not warm:
            return {}, {}
        limit = min(one.call_s for one in warm.values()) * (contender_ratio or float("inf"))
        short = {name for name, one in warm.items() if one.call_s > limit}
        others_s = len(ceilings.names) * ceilings.seconds if ceilings and self.setting.device == "cpu" else 0.0
        rounds = affordable_rounds(plan, [one.call_s for name, one in warm.items() if name not in short], others_s)
        counts = {name: block_calls(plan, one.call_s, rounds) for name, one in warm.items()}

        def one_block(name: str, turn: int) -> Seconds | None:
            if rows[name].status != "ok" or (name in short and turn >= MIN_ROUNDS):
                return None
            try:
                expected = counts[name] * warm[name].call_s
                wanted = (counts[name], block_limit_s(plan))
                return self._workers[name].ask("block", *wanted, limit_s=BLOCK_LIMIT_S + 20 * expected)
            except WorkerFailed as failure:
                rows[name] = replace(rows[name], status="failed", reason=str(failure))
                return None

        if ceilings is not None and self.setting.device == "cpu" and self._ceilings is None:
            self._ceilings = self._start(Ceilings, self.setting.threads)
        worker = self._ceilings
        ceilings = ceilings if worker else None  # they are the CPU's
        rates: list[dict[str, float]] = []

        def one_ceiling(turn: int) -> None:
            assert ceilings is not None
            assert worker is not None
            try:
                wanted = (ceilings.names, ceilings.seconds, weight_bytes)
                rates.append(worker.ask("block", *wanted, limit_s=BLOCK_LIMIT_S))
            except WorkerFailed:
                rates.append({})  # the report says that there are none

        blocks: dict[str, Callable[[int], Seconds | None]] = {name: partial(one_block, name) for name in warm}
        if ceilings is not None:
            blocks["ceilings"] = one_ceiling
        samples = interleave(blocks, rounds)
        samples.pop("ceilings", None)
        names = [name for name in (ceilings.names if ceilings else ()) if rates and all(name in r for r in rates)]
        return samples, {name: tuple(r[name] for r in rates) for name in names}

    def _add_timings(
        self,
        rows: dict[str, Row],
        warm: Mapping[str, Warm],
        samples: Mapping[str, list[Seconds]],
        batch: int,
        mode: str,
    ) -> None:
        """Puts statistics into the rows of the backends that came through; offline counts all samples in all time."""
        timings = {name: summarize(s) for name, s in samples.items() if s and rows[name].status == "ok"}
        baseline = timings.get(BASELINE)
        for name, timing in timings.items():
            rows[name] = replace(
                rows[name],
                warmed_up=warm[name].stable,
                peak_bytes=self._workers[name].ask("peak_memory", limit_s=BLOCK_LIMIT_S),
                timing=timing,
                samples_per_s=batch / (timing.mean_s if mode == "offline" else timing.median_s),
                ratio_to_eager=baseline.median_s / timing.median_s if baseline else None,
            )

    def _add_limits(self, rows: dict[str, Row], work: Work, ceilings: Mapping[str, tuple[float, ...]]) -> None:
        """Puts into the rows how far they are from the machine's limit."""
        caches = {"L2": self.setting.threads * cache_bytes(2, MIB), "L3": cache_bytes(3, 32 * MIB)}
        for name, row in rows.items():
            if row.timing is not None:
                rows[name] = replace(row, limit=limit(row.timing.round_medians_s, work, ceilings, caches))


@contextmanager
def session(names: Sequence[str], setting: Setting) -> Iterator[Session]:
    """The session of the backends with these option names; its workers end with the context."""
    with ExitStack() as stack:
        yield Session({name: BACKENDS[name] for name in names}, setting, stack)
