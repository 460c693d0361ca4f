"""Two reports: no regression between runs of the same code, and one where it was made slower."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from fastgraph.bench.backends import Setting
from fastgraph.bench.plan import Plan
from fastgraph.bench.report.compare import compare, ratio_interval
from fastgraph.bench.report.report import Report
from fastgraph.bench.session import Session
from tests.bench_samples import Paced, PacedSlower, case_report, report, small_case


def noisy(seed: int, factor: float = 1.0, machine: float = 1.0) -> Report:
    """A report whose rounds scatter by 5 %, ours slower by ``factor``, the whole machine by ``machine``."""
    generator = np.random.default_rng(seed)
    cases = []
    for case in report().cases:
        swing = machine * generator.normal(1, 0.2, 9).clip(0.5)  # other processes, from round to round
        rows = []
        for row in case.rows:
            if row.timing is not None:
                own = factor if row.backend == "fastgraph" else 1.0
                medians = row.timing.median_s * own * swing * generator.normal(1, 0.03, 9)
                timing = replace(row.timing, median_s=float(np.median(medians)), round_medians_s=tuple(medians))
                row = replace(row, timing=timing)
            rows.append(row)
        cases.append(replace(case, rows=tuple(rows)))
    return replace(report(), cases=tuple(cases))


@pytest.mark.parametrize("seed", range(20))
def test_the_same_code_is_no_regression(seed: int) -> None:
    found = compare(noisy(seed), noisy(100 + seed, machine=1.3), ["fastgraph"], threshold=0.05)
    assert len(found) == 3
    assert not any(one.regression for one in found)


@pytest.mark.parametrize("seed", range(20))
def test_a_slow_down_of_a_fifth_is_found(seed: int) -> None:
    found = compare(noisy(seed), noisy(100 + seed, factor=1.2, machine=0.8), ["fastgraph"], threshold=0.05)
    assert all(one.regression for one in found)
    assert all(one.low is not None and one.ratio is not None and one.low < one.ratio for one in found)


def test_what_other_processes_may_have_taken_is_no_regression() -> None:
    """All rounds of the second run are slower by a quarter, and others had a third of the processors."""
    before, after = case_report(16, 2e-5), case_report(16, 2.5e-5)
    (quiet,) = compare(report(before), report(after), ["fastgraph"], threshold=0.05)
    assert (quiet.regression, quiet.verdict, quiet.bound) == (True, "regression", pytest.approx(1.05))
    for first, second in ((before, replace(after, others=0.3)), (replace(before, others=0.3), after)):
        (busy,) = compare(report(first), report(second), ["fastgraph"], threshold=0.05)
        assert not busy.regression
        assert busy.bound == pytest.approx(1.5)
        assert busy.verdict == "slower, within the noise"


def test_verdicts_in_words() -> None:
    reports = {factor: report(case_report(16, factor * 2e-5, spread=0.01)) for factor in (1.0, 0.8, 0.97, 1.03, 1.2)}
    said = {
        factor: compare(reports[1.0], after, ["fastgraph"], threshold=0.05)[0].verdict
        for factor, after in reports.items()
    }
    assert said == {
        0.8: "faster",
        0.97: "faster, within the noise",
        1.0: "no difference",
        1.03: "slower, within the noise",
        1.2: "regression",
    }


@pytest.fixture(scope="module")
def measured() -> dict[str, Report]:
    """Real runs, in processes of their own: twice the same code, and once a fifth slower."""
    plan = Plan(rounds=9, block_s=0.02, warm_up_s=0.05, case_s=5)
    found = {}
    for name, backend in (("first", Paced), ("second", Paced), ("slower", PacedSlower)):
        with ExitStack() as stack:
            running = Session({"fastgraph": backend}, Setting(), stack)
            # others cannot take anything from one who sleeps
            found[name] = report(replace(running.run(small_case(), plan), others=0.0))
    return found


def test_two_runs_of_the_same_code_are_no_regression(measured: dict[str, Report]) -> None:
    for first, second in (("first", "second"), ("second", "first")):
        (found,) = compare(measured[first], measured[second], ["fastgraph"], threshold=0.05, absolute=True)
        assert found.ratio is not None
        assert not found.regression


def test_a_run_that_is_a_fifth_slower_is_a_regression(measured: dict[str, Report]) -> None:
    (found,) = compare(measured["first"], measured["slower"], ["fastgraph"], threshold=0.05, absolute=True)
    assert found.regression


def test_absolute_times_see_the_machine() -> None:
    slow = compare(noisy(1), noisy(2, machine=2.0), ["fastgraph"], threshold=0.05, absolute=True)
    assert all(one.regression for one in slow)


def test_interval_holds_the_true_ratio() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for i in range(200):
        before, after = generator.normal(1, 0.05, 15), generator.normal(1.1, 0.05, 15)
        _, low, high = ratio_interval(before, after, seed=i)
        inside += low <= 1.1 <= high
    assert 180 <= inside <= 200  # 95 % of the time, and a bootstrap of 15 rounds is not exact
    ratio, low, high = ratio_interval(np.full(9, 2.0), np.full(9, 3.0))
    assert (ratio, low, high) == (1.5, 1.5, 1.5)


def test_a_backend_that_has_lost_its_speed_is_a_regression() -> None:
    before = report()
    rows = tuple(
        replace(row, status="wrong", reason="its error", timing=None) if row.backend == "fastgraph" else row
        for row in before.cases[0].rows
    )
    after = replace(before, cases=(replace(before.cases[0], rows=rows), *before.cases[1:]))
    first, *others = compare(before, after, ["fastgraph"], 0.05)
    assert (first.regression, first.ratio, first.reason) == (True, None, "wrong: its error")
    assert not any(one.regression for one in others)


def test_a_case_that_is_not_in_both_is_said() -> None:
    (only,) = compare(report(case_report(16)), report(case_report(1)), ["fastgraph"], 0.05)
    assert (only.regression, only.reason) == (False, "not in the second report")


def test_what_had_no_speed_before_cannot_lose_it() -> None:
    assert compare(report(), report(), ["openvino"], 0.05) == []


def test_calls_that_came_otherwise_are_not_compared() -> None:
    before = report(case_report(16, 2e-5))
    paused = replace(before, plan=replace(before.plan, pause_s=1e-4))
    with pytest.raises(
        ValueError, match=r"reports: need calls that come alike, got mode rounds and mode rounds, 100.0 µs"
    ):
        compare(before, paused, ["fastgraph"], threshold=0.05)
