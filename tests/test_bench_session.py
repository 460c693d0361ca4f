"""Backends in processes of their own: one that is wrong, raises, crashes or hangs is listed and takes nothing down."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fastgraph.bench import session as sessions
from fastgraph.bench.backends import Backend, Setting
from fastgraph.bench.ceilings.measured import CeilingBlocks
from fastgraph.bench.plan import Plan
from fastgraph.bench.process.fork_server import ForkServer
from fastgraph.bench.process.workers import Worker, WorkerFailed
from fastgraph.bench.ratio import Ratio
from fastgraph.bench.results import CaseReport, Row
from fastgraph.bench.session import Session
from fastgraph.kernels import native
from tests import bench_samples as samples
from tests.bench_busy import Busy


@contextmanager
def session(*backends: type[Backend]) -> Iterator[Session]:
    with ExitStack() as stack:
        yield Session({one.name: one for one in backends}, Setting(), stack)


TROUBLE = (
    samples.Baseline, samples.Wrong, samples.Raising, samples.Missing, samples.Crashing, samples.Tired,
    samples.NoTensor, samples.Refusing, samples.Slow, samples.Right,
)  # fmt: skip
CEILINGS = ("fma", "weights", "L2", "L3", "launch")


@pytest.fixture(scope="module")
def both() -> tuple[CaseReport, CaseReport]:
    """All kinds of trouble on one case and then on another batch of it, with ceilings and a limit for slow ones."""
    with session(*TROUBLE) as running:
        first = running.run(samples.small_case(), samples.FAST)
        plan = Plan(rounds=6, block_s=0.001, warm_up_s=0.01, case_s=5)
        blocks = CeilingBlocks(CEILINGS, seconds=0.002) if native.kernels() else None
        return first, running.run(samples.small_case(2), plan, blocks, contender_ratio=50.0)  # 20 ms against some 30 us


@pytest.fixture
def done(both: tuple[CaseReport, CaseReport]) -> CaseReport:
    return both[0]


@pytest.fixture
def again(both: tuple[CaseReport, CaseReport]) -> CaseReport:
    return both[1]


def row(report: CaseReport, name: str) -> Row:
    found = report.row(name)
    assert found is not None
    return found


def test_nobody_disappears(done: CaseReport) -> None:
    names = ["eager", "wrong", "raising", "missing", "crashing", "tired", "no tensor", "refusing", "slow", "right"]
    assert [one.backend for one in done.rows] == names


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("wrong", "wrong", "its error 2.5e-01 is over the tolerance"),
        ("raising", "failed", "RuntimeError: no such library"),
        ("missing", "failed", "ModuleNotFoundError: No module named 'peer'"),
        ("crashing", "failed", "its process ended with SIGSEGV: a last word"),
        ("tired", "failed", "RuntimeError: out of breath"),
        ("no tensor", "failed", "TypeError: the model's output must be one tensor; got ndarray"),
        ("refusing", "not possible", "has no fp32"),
    ],
)
def test_what_went_wrong_has_a_reason_and_no_speed(done: CaseReport, name: str, status: str, reason: str) -> None:
    found = row(done, name)
    assert found.status == status
    assert (found.reason or "").startswith(reason)
    assert (found.timing, found.samples_per_s, found.ratio_to_eager) == (None, None, None)


def test_a_wrong_backends_error_is_shown(done: CaseReport) -> None:
    found = row(done, "wrong")
    assert found.max_error == pytest.approx(0.25, rel=1e-4)
    assert found.mean_error == pytest.approx(0.25, rel=1e-4)


def test_the_right_ones_are_timed(done: CaseReport) -> None:
    eager, right, slow = row(done, "eager"), row(done, "right"), row(done, "slow")
    assert eager.ratio_to_eager == Ratio(1, 1, 1)
    assert right.ratio_to_peer is not None
    for one in (eager, right, slow):
        assert (one.status, one.reason, one.where, one.accuracy) == ("ok", None, "somewhere", 1.0)
        assert one.timing is not None
        assert one.timing.rounds == 3
        assert one.samples_per_s == pytest.approx(4 / one.timing.median_s)
        assert one.prepare_s is not None
        assert one.first_call_s is not None
        assert one.peak_bytes is not None
    assert slow.timing is not None
    assert slow.timing.median_s > 0.02
    assert slow.ratio_to_eager is not None
    assert slow.ratio_to_eager.value < 0.5
    assert slow.usage is not None
    assert slow.usage.cpu_s < 0.02  # it sleeps


def test_a_slow_one_may_be_left_out_of_later_rounds(again: CaseReport) -> None:
    timings = {name: row(again, name).timing for name in ("right", "slow")}
    assert {name: one.rounds for name, one in timings.items() if one} == {"right": 6, "slow": 3}


def test_what_serves_any_batch_is_prepared_once(done: CaseReport, again: CaseReport) -> None:
    assert row(done, "right").prepare_s is not None
    assert row(again, "right").prepare_s is None
    assert row(again, "right").status == "ok"
    assert again.input_shape == (2, 6)


def test_one_whose_process_is_gone_stays_listed(again: CaseReport) -> None:
    assert row(again, "crashing").reason == "its process ended with SIGSEGV: a last word"


def test_one_that_hangs_is_ended_and_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "PREPARE_LIMIT_S", 1.0)
    with session(samples.Hanging) as running:
        running._workers["hanging"].start()  # importing PyTorch does not count
        report = running.run(samples.small_case(), samples.FAST)
        again = running.run(samples.small_case(), samples.FAST)
    assert row(report, "hanging").reason == "gave no answer within 1 s and was ended"
    assert row(again, "hanging").reason == "gave no answer within 1 s and was ended"


@pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")
def test_ceilings_are_measured_in_every_round(again: CaseReport) -> None:
    assert set(again.ceilings) == set(CEILINGS)
    assert all(len(values) == 6 and min(values) > 0 for values in again.ceilings.values())
    limit = row(again, "right").limit
    assert limit is not None
    assert limit.binding == "launch"  # nothing else counts for 6 x 3 weights
    assert 0 < limit.share < 1.5
    assert row(again, "wrong").limit is None


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_what_is_left_out_is_listed_with_the_reason() -> None:
    with session(samples.Hanging) as running:
        report = running.run(samples.small_case(), samples.FAST, left_out={"hanging": "it takes long"})
    assert (row(report, "hanging").status, row(report, "hanging").reason) == ("left out", "it takes long")


def test_workers_without_a_fork_server_are_listed() -> None:
    with session(samples.Right, samples.Slow) as running:
        running._workers["right"].start()
        running._fork_server.close()
        report = running.run(samples.small_case(), samples.FAST)
    assert row(report, "right").reason == "its process ended with SIGKILL"
    assert (row(report, "slow").reason or "").startswith("its process could not be started: ")


def test_workers_share_what_was_imported_and_nothing_else() -> None:
    with session(samples.Right, samples.Slow) as running:
        for name in ("right", "slow"):
            running._workers[name].start()
        pids = [running._workers[name].pid for name in ("right", "slow")]
        parents = {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] for pid in pids}
        assert parents == {str(running._fork_server._process.pid)}
        assert len(set(pids)) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_worker_that_spins_is_stopped_while_others_run() -> None:
    fork_server = ForkServer(threads=1)
    worker = Worker(fork_server, Busy)
    try:
        pid = worker.ask("pid", limit_s=60)
        worker.ask("spin", limit_s=60)
        before = cpu_seconds(pid)
        time.sleep(0.5)
        assert cpu_seconds(pid) - before < 0.1
        assert worker.ask("pid", limit_s=60) == pid  # and goes on when it is asked
    finally:
        worker.close()
        fork_server.close()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(WorkerFailed, match="its process was closed"):
        worker.ask("pid", limit_s=1)


def test_what_is_preloaded_is_there_in_every_worker() -> None:
    fork_server = ForkServer(threads=1, preload=["wave", "there_is_no_such_module"])
    worker = Worker(fork_server, Busy)
    try:
        assert "wave" in worker.ask("imported", limit_s=60)
    finally:
        worker.close()
        fork_server.close()
