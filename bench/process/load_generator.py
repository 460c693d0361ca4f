"""How calls come: with pauses, as queries at random (MLPerf's server scenario), or from several processes at once.

Between calls the process sleeps, as a service does that waits for its next request: a loop that waits for the clock
would keep its core awake and warm, and compete with the backend's own threads. What these do meanwhile (park or spin)
is theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from fastgraph.bench.process.timer import Call, Clock
from fastgraph.bench.timing import Seconds

BEHIND = 0.1  # of the length of a block of arrivals: who is later than this does not keep up


def arrivals(rate_per_s: float, seconds: float, seed: int) -> Seconds:
    """When queries arrive in ``seconds``, from 0: a Poisson process of this rate, one query at least."""
    generator = np.random.default_rng(seed)
    count = max(1, round(rate_per_s * seconds))
    return np.cumsum(generator.exponential(1 / rate_per_s, count))


def serve(
    call: Call,
    due_s: Seconds,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Seconds:
    """Seconds from each query's arrival to its answer, one after another in the order of arrival.

    A query counts from when it was due, so that what waits behind a slow call is not forgotten. It ends early, with
    fewer values than queries, when the answers are later than ``BEHIND`` of the whole time.
    """
    allowed_s = BEHIND * float(due_s[-1])
    start = clock()
    latencies: list[float] = []
    for due in due_s:
        wait_s = start + due - clock()
        if wait_s > 0:
            sleep(wait_s)
        elif -wait_s > allowed_s:
            break
        call()
        latencies.append(clock() - start - due)
    return np.array(latencies)


def together(call: Call, start_s: float, end_s: float, clock: Clock = time.perf_counter) -> tuple[Seconds, float]:
    """Seconds of each call between two moments of the clock that all processes share, and calls a second.

    It calls from now on, untimed, until all have begun; the last call may end after ``end_s``.
    """
    while clock() < start_s:
        call()
    begun = before = clock()
    seconds: list[float] = []
    while before < end_s or not seconds:
        call()
        now = clock()
        seconds.append(now - before)
        before = now
    return np.array(seconds), len(seconds) / (before - begun)
