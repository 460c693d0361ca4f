"""Rounds seen from the parent: blocks of each backend in turn: calls, queries, or several processes at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fastgraph.bench.plan import Plan, block_calls, block_limit_s
from fastgraph.bench.process.load_generator import arrivals
from fastgraph.bench.process.workers import Worker, WorkerFailed
from fastgraph.bench.timing import Seconds

T = TypeVar("T")

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


def interleave(blocks: Mapping[str, Callable[[int], T | None]], rounds: int) -> dict[str, list[T]]:
    """Runs one block of everybody in every round, so that a change in the machine's speed hits all of them alike.

    Args:
        blocks: by name, what runs a block, given the number of the round; None where it sits this round out.
        rounds: how many; each begins with another one, the order stays.

    Returns:
        By name, what its blocks gave, round by round.
    """
    results: dict[str, list[T]] = {name: [] for name in blocks}
    names = list(blocks)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            result = blocks[name](turn)
            if result is not None:
                results[name].append(result)
    return results
