"""From cases and backends to results: prepares, checks and times every backend on every case.

A backend that cannot, fails or is wrong is listed with its reason and gets no speed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch

from fastgraph.bench.backends import BACKENDS, BASELINE, Backend, Setting
from fastgraph.bench.cases import Case
from fastgraph.bench.ceilings.caches import capacities
from fastgraph.bench.ceilings.limit import limit
from fastgraph.bench.ceilings.measured import CeilingBlocks, MeasuredCeilings
from fastgraph.bench.ceilings.work import Work, work_of
from fastgraph.bench.check import Reference, complaint, mean_error, reference
from fastgraph.bench.plan import MIN_ROUNDS, Plan, affordable_rounds
from fastgraph.bench.process.fork_server import ForkServer
from fastgraph.bench.process.host_load import processors
from fastgraph.bench.process.rounds import BLOCK_LIMIT_S, Block, interleave, timer
from fastgraph.bench.process.runner import Ready, Runner
from fastgraph.bench.process.timer import WarmUp
from fastgraph.bench.process.workers import Worker, WorkerFailed
from fastgraph.bench.ratio import speed_ratio
from fastgraph.bench.results import CaseReport, Row
from fastgraph.bench.timing import samples_per_s, summarize
from fastgraph.verify import error

PRELOAD = (
    "fastgraph.bench.process.runner",
    "fastgraph.bench.ceilings.measured",
    "fastgraph.module",
    "sklearn.datasets",
    "torch._dynamo",
    "torchvision.transforms",
)
"""What workers need, imported once by the process that they are forked from."""
PREPARE_LIMIT_S = 300.0  # max-autotune on two cores takes up to a minute
PREPARING = 0.6  # of a case's time, about: compilers and all
Progress = Callable[[str, float], None]
"""What is being done, and the share of the case that is done, 0..1."""


class Session:
    """The workers of one setting: one a backend, ``processes - 1`` more beside it, and one for the ceilings."""

    def __init__(
        self, backends: Mapping[str, type[Backend]], setting: Setting, stack: ExitStack, processes: int = 1
    ) -> None:
        self.setting, self.backends, self._stack = setting, backends, stack
        self._refusals = {name: one().refusal(setting) for name, one in backends.items()}
        self._fork_server = ForkServer(setting.threads, PRELOAD)
        stack.callback(self._fork_server.close)
        self._workers = {
            name: self._start(Runner, one, setting) for name, one in backends.items() if self._refusals[name] is None
        }
        self._beside = {
            name: [self._start(Runner, backends[name], setting) for _ in range(processes - 1)] for name in self._workers
        }
        self._ceilings: Worker | None = None  # started when ceilings are first asked for

    def _start(self, make: Callable[..., object], *arguments: object) -> Worker:
        worker = Worker(self._fork_server, make, *arguments)
        self._stack.callback(worker.close)
        return worker

    def run(
        self,
        case: Case,
        plan: Plan,
        ceilings: CeilingBlocks | None = None,
        contender_ratio: float | None = None,
        progress: Progress = lambda text, share: None,
        left_out: Mapping[str, str] = MappingProxyType({}),
    ) -> CaseReport:
        """Measures one case, without the backends that are ``left_out``, which are listed with the reason given.

        A backend that is slower than the fastest by more than ``contender_ratio`` takes part in the first three rounds
        only; None gives everybody all rounds.
        """
        progress(f"{case.name}: reference", 0.0)
        built = case.build()
        truth, work = reference(built, self.setting), work_of(built, self.setting)
        rows = {}
        for turn, (name, backend) in enumerate(self.backends.items()):
            if name in left_out:
                rows[name] = Row(backend.name, "left out", left_out[name])
                continue
            progress(f"{case.name}: {name}", PREPARING * turn / len(self.backends))
            rows[name] = self._prepared(name, case, truth)
        ready = [name for name, row in rows.items() if row.status == "ok"]
        warm: dict[str, WarmUp] = {}
        for name in ready:
            try:
                for worker in (*self._beside[name], self._workers[name]):
                    warm[name] = worker.ask("warm_up", plan, limit_s=BLOCK_LIMIT_S + 20 * plan.warm_up_s)
            except WorkerFailed as failure:
                rows[name] = replace(rows[name], status="failed", reason=str(failure))
        in_rounds = lambda share: progress(f"{case.name}: rounds", PREPARING + (1 - PREPARING) * share)  # noqa: E731
        before = processors(self._pids())
        weight_bytes = work.weight_bytes if work else 0
        blocks, rates = self._rounds(rows, warm, plan, ceilings, weight_bytes, contender_ratio, in_rounds)
        after = processors(self._pids())
        self._add_timings(rows, warm, blocks, case.batch, plan)
        if work is not None:
            self._add_limits(rows, work, rates)
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
            ceilings=rates,
            others=after.others_since(before) if before and after else None,
        )

    def _pids(self) -> list[int]:
        """The processes of this session."""
        beside = [worker for workers in self._beside.values() for worker in workers]
        workers = [*self._workers.values(), *beside, *([self._ceilings] if self._ceilings else [])]
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
            for other in self._beside[name]:
                other.ask("prepare", case, limit_s=PREPARE_LIMIT_S)
            ready: Ready = worker.ask("prepare", case, limit_s=PREPARE_LIMIT_S)
            row = replace(row, where=ready.where, prepare_s=ready.prepare_s, first_call_s=ready.first_call_s)
            row = replace(row, fused=ready.fused)
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
        warm: Mapping[str, WarmUp],
        plan: Plan,
        ceilings: CeilingBlocks | None,
        weight_bytes: int,
        contender_ratio: float | None,
        progress: Callable[[float], None],
    ) -> tuple[dict[str, list[Block]], dict[str, tuple[float, ...]]]:
        """The blocks by backend and round, and the ceilings by name and round."""
        if not warm:
            return {}, {}
        limit = min(one.call_s for one in warm.values()) * (contender_ratio or float("inf"))
        short = {name for name, one in warm.items() if one.call_s > limit}
        if not plan.tight or self.setting.device != "cpu":
            ceilings = None  # they are those of calls without rest on the CPU
        others_s = len(ceilings.names) * ceilings.seconds if ceilings else 0.0
        rounds = affordable_rounds(plan, [one.call_s for name, one in warm.items() if name not in short], others_s)
        timers = {
            name: timer([self._workers[name], *self._beside[name]], plan, one.call_s, rounds)
            for name, one in warm.items()
        }

        def one_block(name: str, turn: int) -> Block | None:
            progress(turn / rounds)
            if rows[name].status != "ok" or (name in short and turn >= MIN_ROUNDS):
                return None
            try:
                return timers[name](turn)
            except WorkerFailed as failure:
                rows[name] = replace(rows[name], status=failure.status, reason=str(failure))
                return None

        rates: list[dict[str, float]] = []
        blocks: dict[str, Callable[[int], Block | None]] = {name: partial(one_block, name) for name in warm}
        if ceilings is not None:
            blocks["ceilings"] = self._ceiling_block(ceilings, weight_bytes, rates)
        samples = interleave(blocks, rounds)
        samples.pop("ceilings", None)
        names = [name for name in (ceilings.names if ceilings else ()) if rates and all(name in r for r in rates)]
        return samples, {name: tuple(r[name] for r in rates) for name in names}

    def _ceiling_block(
        self, ceilings: CeilingBlocks, weight_bytes: int, rates: list[dict[str, float]]
    ) -> Callable[[int], None]:
        """What adds one round's ceilings to ``rates``."""
        if self._ceilings is None:
            self._ceilings = self._start(MeasuredCeilings, self.setting.threads)
        worker = self._ceilings

        def one_ceiling(turn: int) -> None:
            try:
                wanted = (ceilings.names, ceilings.seconds, weight_bytes)
                rates.append(worker.ask("block", *wanted, limit_s=BLOCK_LIMIT_S))
            except WorkerFailed:
                rates.append({})  # the report says that there are none

        return one_ceiling

    def _add_timings(
        self,
        rows: dict[str, Row],
        warm: Mapping[str, WarmUp],
        samples: Mapping[str, list[Block]],
        batch: int,
        plan: Plan,
    ) -> None:
        """Puts statistics into the rows of the backends that came through."""
        timings = {
            name: summarize([one.seconds for one in blocks], [one.calls_per_s for one in blocks if one.calls_per_s])
            for name, blocks in samples.items()
            if blocks and rows[name].status == "ok"
        }
        peers = {name: timing for name, timing in timings.items() if not self.backends[name].is_ours}
        baseline = timings.get(BASELINE)
        best = max(peers.values(), key=lambda timing: timing.calls_per_s) if peers else None
        for name, timing in timings.items():
            worker = self._workers[name]
            try:
                peak_bytes, usage = (worker.ask(what, limit_s=BLOCK_LIMIT_S) for what in ("peak_memory", "usage"))
            except WorkerFailed:
                peak_bytes, usage = None, None  # it ended after its last round, whose figures stand
            rows[name] = replace(
                rows[name],
                warmed_up=warm[name].stable,
                peak_bytes=peak_bytes,
                usage=usage,
                timing=timing,
                samples_per_s=samples_per_s(timing, batch, plan),
                ratio_to_eager=speed_ratio(timing, baseline) if baseline else None,
                ratio_to_peer=speed_ratio(timing, best) if best else None,
            )

    def _add_limits(self, rows: dict[str, Row], work: Work, ceilings: Mapping[str, tuple[float, ...]]) -> None:
        """Puts into the rows how far they are from the machine's limit."""
        caches = capacities(self.setting.threads)
        for name, row in rows.items():
            if row.timing is not None and ceilings:
                rows[name] = replace(row, limit=limit(row.timing.round_costs_s, work, ceilings, caches))


@contextmanager
def session(names: Sequence[str], setting: Setting, processes: int = 1) -> Iterator[Session]:
    """The session of the backends with these option names; its workers end with the context."""
    with ExitStack() as stack:
        yield Session({name: BACKENDS[name] for name in names}, setting, stack, processes)
