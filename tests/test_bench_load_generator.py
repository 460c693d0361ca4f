"""How calls come: pauses, queries at random and several processes, on a clock that the test moves and for real."""

import ctypes
import sys
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from fastgraph.bench.backends import Backend, Setting
from fastgraph.bench.plan import Plan, affordable_rounds, block_calls
from fastgraph.bench.process import load_generator, prctl, rounds
from fastgraph.bench.process.timer import block
from fastgraph.bench.results import CaseReport
from fastgraph.bench.session import Session
from tests import bench_samples as samples
from tests.test_bench_timing import Clock

SERVER = replace(samples.FAST, block_s=0.1, mode="server", rate_per_s=200.0)


def measured(plan: Plan, *backends: type[Backend]) -> CaseReport:
    with ExitStack() as stack:
        session = Session({one.name: one for one in backends}, Setting(), stack, plan.processes)
        return session.run(samples.small_case(), plan)


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    due = load_generator.arrivals(2000, 10, seed=3)
    gaps = np.diff(due, prepend=0)
    assert len(due) == 20_000
    assert gaps.mean() == pytest.approx(1 / 2000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as it is for exponential gaps alone
    np.testing.assert_array_equal(due, load_generator.arrivals(2000, 10, seed=3))  # the same for every backend
    assert due[0] != load_generator.arrivals(2000, 10, seed=4)[0]


def test_a_query_counts_from_when_it_was_due() -> None:
    clock, slept = Clock(), list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds

    due = np.array([1.0, 1.5, 9.0, 100.0])
    found = load_generator.serve(clock.call(2.0, 2.0, 0.5), due, clock, sleep)
    np.testing.assert_allclose(found, [2.0, 3.5, 0.5, 0.5])  # the second waits 1.5 s behind the first
    np.testing.assert_allclose(slept, [1.0, 4.0, 90.5])


def test_who_falls_behind_is_stopped() -> None:
    clock = Clock()
    found = load_generator.serve(clock.call(0.2), np.arange(1, 101) / 10, clock, lambda seconds: clock.call(seconds)())
    assert len(found) == 11  # the next one is 1.1 s late: more than a tenth of the 10 s
    assert found[-1] == pytest.approx(1.2)


def test_together_counts_what_is_done_between_the_two_moments() -> None:
    clock = Clock()
    seconds, rate = load_generator.together(clock.call(0.3), 1.0, 2.0, clock)
    np.testing.assert_allclose(seconds, [0.3] * 3)  # from 1.2 to 2.1
    assert rate == pytest.approx(1 / 0.3)
    assert len(load_generator.together(clock.call(5.0), 0.0, 1.0, clock)[0]) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's prctl")
def test_sleeps_are_as_long_as_they_were_asked_to_be() -> None:
    libc = ctypes.CDLL(None)
    before = libc.prctl(30, 0, 0, 0, 0)  # PR_GET_TIMERSLACK
    try:
        prctl.sharpen_sleep()
        assert libc.prctl(30, 0, 0, 0, 0) == 1
    finally:
        libc.prctl(prctl.PR_SET_TIMERSLACK, before, 0, 0, 0)


def test_a_pause_is_slept_before_each_call_and_not_timed() -> None:
    clock, order = Clock(), list[str]()

    def sleep(seconds: float) -> None:
        order.append(f"sleep {seconds}")
        clock.now += seconds

    def call() -> None:
        order.append("call")
        clock.now += 0.25

    np.testing.assert_allclose(block(call, 3, clock=clock, pause_s=2.0, sleep=sleep), [0.25] * 3)
    assert order == ["sleep 2.0", "call"] * 4  # one leads in


def test_pauses_count_when_time_is_planned() -> None:
    plan = Plan(rounds=10, block_s=0.1, warm_up_s=1, case_s=10, pause_s=9e-4)
    assert block_calls(plan, 1e-4, 10) == 100
    assert affordable_rounds(replace(plan, pause_s=2.0), [1e-4]) == 4


def test_plans_say_how_calls_come() -> None:
    plan = samples.FAST
    assert str(plan) == "mode rounds"
    assert str(replace(plan, pause_s=1e-4)) == "mode rounds, 100.0 µs asleep before each call"
    assert str(replace(plan, processes=2)) == "mode rounds, 2 processes at once on the same cores"
    assert str(SERVER) == "mode server: 200 queries a second arrive at random (Poisson)"
    assert plan.tight
    assert not any(one.tight for one in (replace(plan, pause_s=1e-4), replace(plan, processes=2), SERVER))


def test_pauses_are_measured_and_cost_no_processor_time() -> None:
    made = measured(replace(samples.FAST, block_s=0.05, pause_s=2e-3), samples.Baseline)
    (row,) = made.rows
    assert row.timing is not None
    assert row.usage is not None
    assert row.timing.median_s < 1e-3
    assert 2e-3 <= row.usage.between_s < 20e-3
    assert row.usage.cpu_s < 1e-3  # a loop that waits for the clock would take 2 ms
    assert row.samples_per_s is None


def test_the_server_scenario_tells_who_cannot_keep_up() -> None:
    made = measured(SERVER, samples.Baseline, samples.Slow)
    eager, slow = made.rows
    assert (eager.status, eager.reason) == ("ok", None)
    assert eager.timing is not None
    assert eager.timing.calls == 60
    assert (slow.status, slow.timing) == ("overloaded", None)
    assert (slow.reason or "").startswith("200 queries a second arrive; it answers ")
    assert made.ceilings == {}


def test_a_backend_that_falls_behind_in_a_round_is_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Behind:
        def ask(self, method: str, due_s: np.ndarray, limit_s: float) -> np.ndarray:
            return due_s[:-1]

    with pytest.raises(rounds.Overloaded, match="200 queries a second arrive; its answers fall behind"):
        rounds.queries(Behind(), SERVER, 1e-3, 0)  # type: ignore[arg-type]


def test_processes_call_at_once_and_are_counted_together() -> None:
    plan = replace(samples.FAST, block_s=0.1, case_s=5.0, processes=2)
    made = measured(plan, samples.Paced)
    (row,) = made.rows
    assert row.timing is not None
    assert row.timing.median_s >= 5e-3  # of one call
    assert row.timing.calls_per_s > 1.3 / row.timing.median_s  # two of them, most of the time asleep
    assert row.timing.calls_per_s <= 2 / 5e-3
    assert row.samples_per_s == pytest.approx(4 * row.timing.calls_per_s)
    assert len(row.timing.round_calls_per_s) == row.timing.rounds == 3


def test_a_process_that_crashes_beside_another_takes_the_row_and_no_more() -> None:
    plan = replace(samples.FAST, block_s=0.05, processes=2)
    eager, crashing = measured(plan, samples.Baseline, samples.Crashing).rows
    assert eager.status == "ok"
    assert (crashing.status, crashing.timing) == ("failed", None)
    assert (crashing.reason or "").startswith("its process ended with SIGSEGV")
