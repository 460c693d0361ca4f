"""How one backend is timed in a round: calls one after another, queries that arrive, or several processes at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastgraph.bench.crew import Worker, WorkerFailed
from fastgraph.bench.load import arrivals
from fastgraph.bench.measure import Plan, Seconds, Timing, block_calls, block_limit_s

BLOCK_LIMIT_S = 60.0  # on top of twenty times what the block should take
TO_BEGIN_S = 0.02  # until all processes have been woken and call


@dataclass(frozen=True)
class Block:
    """Seconds of each call of a round; where there are several processes, calls a second of all together."""

    seconds: Seconds
    calls_per_s: float | None = None


class Overloaded(WorkerFailed):
    """Queries arrive faster than the backend answers."""

    status = "overloaded"


def timer(workers: Sequence[Worker], plan: Plan, call_s: float, rounds: int) -> Callable[[int], Block]:
    """What times one backend's block, given the number of the round; it raises ``WorkerFailed``."""
    if plan.rate_per_s is not None:
        return lambda turn: queries(workers[0], plan, call_s, turn)
    if plan.processes > 1:
        return lambda turn: at_once(workers, plan, call_s)
    count = block_calls(plan, call_s, rounds)
    expected_s = count * (call_s + plan.pause_s)
    wanted = (count, block_limit_s(plan), plan.pause_s)
    return lambda turn: Block(workers[0].ask("block", *wanted, limit_s=BLOCK_LIMIT_S + 20 * expected_s))


def queries(worker: Worker, plan: Plan, call_s: float, turn: int) -> Block:
    """The queries of one round; the same moments for every backend."""
    assert plan.rate_per_s is not None
    if call_s * plan.rate_per_s >= 1:
        raise Overloaded(f"{plan.rate_per_s:,g} queries a second arrive; it answers {1 / call_s:,.0f}")
    due_s = arrivals(plan.rate_per_s, plan.block_s, seed=turn)
    answered: Seconds = worker.ask("serve", due_s, limit_s=BLOCK_LIMIT_S + 20 * float(due_s[-1]))
    if len(answered) < len(due_s):
        raise Overloaded(f"{plan.rate_per_s:,g} queries a second arrive; its answers fall behind more and more")
    return Block(answered)


def at_once(workers: Sequence[Worker], plan: Plan, call_s: float) -> Block:
    """All processes of one backend, calling without rest for ``plan.block_s``."""
    start_s = time.perf_counter() + TO_BEGIN_S
    limit_s = BLOCK_LIMIT_S + 20 * (plan.block_s + call_s)
    begun: list[Worker] = []
    answers: list[tuple[Seconds, float]] = []
    failure: WorkerFailed | None = None
    for worker in workers:
        try:
            worker.begin("together", start_s, start_s + plan.block_s)
            begun.append(worker)
        except WorkerFailed as failed:
            failure = failed
    for worker in begun:  # every one is waited for, so that none runs on beside the next backend
        try:
            answers.append(worker.answer(limit_s))
        except WorkerFailed as failed:
            failure = failed
    if failure is not None:
        raise failure
    return Block(np.concatenate([seconds for seconds, _ in answers]), sum(rate for _, rate in answers))


def samples_per_s(timing: Timing, batch: int, plan: Plan) -> float | None:
    """Samples a second where calls are made as fast as possible; offline counts all samples in all time."""
    if plan.pause_s or plan.rate_per_s is not None:
        return None
    return batch / timing.mean_s if plan.mode == "offline" else batch * timing.calls_per_s
