"""Timing: statistics with known answers, and the round scheduler on a clock that the test moves."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fastgraph.bench.plan import Plan, affordable_rounds, block_calls, block_limit_s
from fastgraph.bench.process.rounds import interleave
from fastgraph.bench.process.timer import block, warm_up
from fastgraph.bench.timing import CALLS_FOR_P99, summarize

PLAN = Plan(rounds=10, block_s=0.1, warm_up_s=1, case_s=10)


class Clock:
    """A clock that moves only when something is called: ``call(cost)`` makes a function that takes that long."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def call(self, *costs: float) -> Callable[[], None]:
        """A function that takes ``costs`` one after another, the last one for ever."""
        left = list(costs)

        def spend() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return spend


@pytest.fixture
def clock() -> Clock:
    return Clock()


def rounds(*values: list[float]) -> list[np.ndarray]:
    return [np.array(one_round) for one_round in values]


def test_summary_is_over_the_calls_of_all_rounds() -> None:
    timing = summarize(rounds([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]))
    assert (timing.calls, timing.rounds, timing.median_s, timing.mean_s, timing.iqr_s) == (11, 2, 6.0, 6.0, 5.0)
    assert timing.p90_s == 10.0
    assert timing.round_medians_s == (2.5, 8.0)


def test_summary_ignores_the_order_and_survives_an_outlier() -> None:
    timing = summarize(rounds([1000.0, 3.0, 1.0], [2.0, 4.0]))
    assert (timing.median_s, timing.iqr_s) == (3.0, 2.0)


def test_p99_needs_ten_thousand_calls() -> None:
    calls = np.arange(CALLS_FOR_P99, dtype=float)
    assert summarize([calls[:-1]]).p99_s is None
    assert summarize([calls]).p99_s == pytest.approx(0.99 * (CALLS_FOR_P99 - 1))


def test_block_size_follows_the_time_target() -> None:
    assert [block_calls(PLAN, call_s, 10) for call_s in (0.001, 0.03, 0.1, 5.0)] == [100, 3, 1, 1]


def test_block_size_reaches_the_calls_that_the_mode_asks_for() -> None:
    plan = Plan(rounds=10, block_s=0.1, warm_up_s=1, case_s=10, min_calls=1024)
    assert block_calls(plan, 5.0, 10) * 10 >= 1024
    assert block_calls(plan, 0.0001, 10) == 1000


def test_rounds_follow_the_time_budget() -> None:
    assert affordable_rounds(PLAN, [0.001, 0.002]) == 10
    assert affordable_rounds(PLAN, [0.001, 1.89]) == 5  # 0.1 s and its lead-in, and one call
    assert affordable_rounds(PLAN, [0.001, 1.89], others_s=0.5) == 4
    assert affordable_rounds(PLAN, [0.001, 60.0]) == 3


def test_a_round_takes_no_longer_than_it_was_planned(clock: Clock) -> None:
    """Blocks with their lead-ins on a clock that moves by the calls alone."""
    calls = (0.001, 0.03, 0.1, 0.7)
    rounds = affordable_rounds(PLAN, calls)
    for call_s in calls:
        for _ in range(rounds):
            block(clock.call(call_s), block_calls(PLAN, call_s, rounds), clock=clock)
    assert 0.8 * PLAN.case_s < clock.now <= 1.1 * PLAN.case_s


def test_rounds_are_interleaved_and_rotated() -> None:
    log: list[str] = []

    def block_of(name: str) -> Callable[[int], str]:
        def one(turn: int) -> str:
            log.append(f"{name}{turn}")
            return f"{name}{turn}"

        return one

    found = interleave({name: block_of(name) for name in "abc"}, 4)
    assert " ".join(log) == "a0 b0 c0 b1 c1 a1 c2 a2 b2 a3 b3 c3"
    assert found["b"] == ["b0", "b1", "b2", "b3"]


def test_who_sits_out_a_round_has_no_result_for_it() -> None:
    found = interleave({"a": lambda turn: turn, "b": lambda turn: turn if turn < 3 else None}, 5)
    assert found == {"a": [0, 1, 2, 3, 4], "b": [0, 1, 2]}


def test_every_call_is_timed_but_those_that_lead_in(clock: Clock) -> None:
    np.testing.assert_allclose(block(clock.call(5.0, 5.0, 0.01), 20, clock=clock), [0.01] * 20)
    np.testing.assert_allclose(block(clock.call(0.3), 1, clock=clock), [0.3])  # a long call alone has no lead-in
    assert clock.now == pytest.approx(10.2 + 0.3)


def test_a_block_ends_when_calls_have_become_slow(clock: Clock) -> None:
    assert len(block(clock.call(0.3), 100, 2.0, clock)) == 3  # after four calls of lead-in, half of the time
    assert clock.now == pytest.approx(2.1)
    assert len(block(clock.call(7.0), 100, 2.0, clock)) == 1
    assert block_limit_s(PLAN) == pytest.approx(0.2)
    assert block_limit_s(replace(PLAN, min_calls=1024)) == float("inf")  # however long they take


def test_warm_up_goes_on_until_calls_are_stable(clock: Clock) -> None:
    plan = Plan(rounds=1, block_s=0.1, warm_up_s=100, case_s=1)
    warm = warm_up(clock.call(8.0, 4.0, 2.0, 1.0, 0.5, 0.02), plan, clock)
    assert warm.stable
    assert warm.call_s == pytest.approx(0.02)
    assert clock.now == pytest.approx(15.5 + 2 * 0.1, abs=0.05)


def test_warm_up_ends_with_its_time_when_calls_never_settle(clock: Clock) -> None:
    plan = Plan(rounds=1, block_s=0.1, warm_up_s=3, case_s=1)
    warm = warm_up(clock.call(*(1 + 0.5 * (i % 2) for i in range(100))), plan, clock)
    assert not warm.stable
    assert 3 <= clock.now <= 5
