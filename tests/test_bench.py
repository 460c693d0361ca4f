"""The bench: statistics with known answers, what it refuses to time, and what it reports."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from bench import cli, report
from bench.cases import BATCHES, Case, cases, informative_net, variants
from bench.check import accuracy, complaint, reference
from bench.measure import Plan, Timing, affordable_rounds, block_calls, interleave, summarize, wait_until_quiet, warm_up
from bench.run import CaseReport, Row, run_case
from bench.runners import BASELINE, OURS, RUNNERS, Prepared, Runner
from fastgraph.data import digits, photograph

FAST = Plan(rounds=3, block_s=0.001, warm_up_s=0.01, case_s=1.0)


class Clock:
    """A clock that moves only when something is called: ``call(cost)`` makes a function that takes that long."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def call(self, *costs: float, log: list[str] | None = None, name: str = "") -> Callable[[], None]:
        """A function that takes ``costs`` one after another, the last one for ever."""
        left = list(costs)

        def spend() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            if log is not None:
                log.append(name)

        return spend


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def case(generator: torch.Generator) -> Case:
    """A small classifier; its "digits" are 10 rows, which it classifies right by definition, and a batch of 4."""
    torch.manual_seed(20)
    model = nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=1)).eval()
    rows = torch.randn(10, 6, generator=generator)
    with torch.inference_mode():
        labels = model(rows).argmax(dim=1)
    return Case("small, batch 4", model, rows[:4], (rows, labels.clone()))


def broken(output: Callable[[Tensor], Tensor], name: str = "broken") -> Runner:
    """A backend that gives eager's output, changed."""
    return Runner(name, lambda case: Prepared(lambda x: output(case.model(x)), "nowhere"))


def raising(message: str) -> Callable[[Any], Any]:
    """A function that raises."""

    def fail(_: Any) -> Any:
        raise RuntimeError(message)

    return fail


# Statistics


def test_summary_is_over_the_calls_of_all_rounds() -> None:
    assert summarize([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]]) == Timing(11, 2, 6.0, 5.0, 10.0)


def test_summary_ignores_the_order_and_survives_an_outlier() -> None:
    timing = summarize([[1000.0, 3.0, 1.0], [2.0, 4.0]])
    assert (timing.median_s, timing.iqr_s) == (3.0, 2.0)


def test_block_size_follows_the_time_target() -> None:
    plan = Plan(rounds=10, block_s=0.1, warm_up_s=1, case_s=10)
    assert [block_calls(plan, call_s) for call_s in (0.001, 0.03, 0.1, 5.0)] == [100, 3, 1, 1]


def test_rounds_follow_the_time_budget() -> None:
    plan = Plan(rounds=10, block_s=0.1, warm_up_s=1, case_s=10)
    assert affordable_rounds(plan, [0.001, 0.002]) == 10
    assert affordable_rounds(plan, [0.001, 1.9]) == 5
    assert affordable_rounds(plan, [0.001, 60.0]) == 3


def test_rounds_are_interleaved_and_rotated(clock: Clock) -> None:
    log: list[str] = []
    calls = {name: clock.call(0.06, log=log, name=name) for name in "abc"}
    plan = Plan(rounds=4, block_s=0.1, warm_up_s=1, case_s=10)
    interleave(calls, dict.fromkeys(calls, 0.06), plan, clock, wait=lambda: log.append("."))
    assert "".join(log) == ".aa.bb.cc.bb.cc.aa.cc.aa.bb.aa.bb.cc"


def test_every_call_is_timed_but_those_that_lead_in(clock: Clock) -> None:
    calls = {"slow start": clock.call(5.0, 5.0, 0.01), "steady": clock.call(0.05)}
    plan = Plan(rounds=3, block_s=0.2, warm_up_s=1, case_s=10)
    samples = interleave(calls, {"slow start": 0.01, "steady": 0.05}, plan, clock, wait=lambda: None)
    assert [len(one_round) for one_round in samples["slow start"]] == [20, 20, 20]
    assert [len(one_round) for one_round in samples["steady"]] == [4, 4, 4]
    np.testing.assert_allclose(np.concatenate(samples["slow start"]), 0.01)
    np.testing.assert_allclose(np.concatenate(samples["steady"]), 0.05)


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


def test_waiting_ends_when_other_threads_stop_spinning() -> None:
    spinning = iter([0.0, 0.01, 0.01, 0.02, 0.02, 0.0201])  # of processor time, before and after each sleep
    slept: list[float] = []
    wait_until_quiet(slept.append, lambda: next(spinning))
    assert slept == [0.01, 0.01, 0.01]


def test_waiting_gives_up_on_threads_that_never_stop(clock: Clock) -> None:
    def sleep(seconds: float) -> None:
        clock.now += seconds

    wait_until_quiet(sleep, clock)
    assert clock.now == pytest.approx(2.0)


# The check before the timing


def test_tolerance_is_derived_from_eagers_own_error(case: Case) -> None:
    with torch.inference_mode():
        truth = reference(case.model, case.x)
        eager = case.model(case.x)
    weight, bias = (value.double() for value in case.model.state_dict().values())
    exact = torch.softmax(case.x.double() @ weight.T + bias, dim=1)
    torch.testing.assert_close(truth.output, exact, rtol=0, atol=1e-15)
    assert truth.eager_error == pytest.approx((eager.double() - exact).abs().max().item(), rel=1e-6)
    largest = exact.abs().max().item()
    assert truth.tolerance == pytest.approx(2 * truth.eager_error + 8 * torch.finfo(torch.float32).eps * largest)
    assert complaint(eager, truth) is None


def test_reference_in_parts_is_the_reference(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reference(case.model, case.x)
    monkeypatch.setattr("bench.check.VALUES_AT_ONCE", 6)
    torch.testing.assert_close(reference(case.model, case.x).output, whole.output, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("corrupt", "reason"),
    [
        (
            lambda y: y.index_put((torch.tensor(1), torch.tensor(2)), y[1, 2] + 1e-5),
            "error 1.0e-05 is over the tolerance",
        ),
        (lambda y: y.roll(1, 0), "is over the tolerance"),
        (
            lambda y: y.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(float("nan"))),
            "gives NaN or infinity",
        ),
        (lambda y: y / 0, "gives NaN or infinity"),
        (lambda y: y[:-1], r"gives torch.float32 \[3, 3\], where torch.float32 \[4, 3\] is needed"),
        (lambda y: y.double(), r"gives torch.float64 \[4, 3\], where torch.float32 \[4, 3\] is needed"),
        (lambda y: y.numpy(), "AttributeError"),
    ],
    ids=["one value", "rows moved", "nan", "inf", "row missing", "dtype", "no tensor"],
)
def test_a_wrong_backend_is_listed_without_speed(case: Case, corrupt: Callable[[Tensor], Tensor], reason: str) -> None:
    made = run_case(case, [BASELINE, broken(corrupt)], FAST)
    eager, row = made.rows
    assert eager.status == "ok"
    assert row.status in ("wrong", "failed")
    assert (row.timing, row.samples_per_s, row.ratio_to_eager) == (None, None, None)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(row.reason)


def test_a_wrong_backend_is_listed_with_its_error(case: Case) -> None:
    row = run_case(case, [BASELINE, broken(lambda y: y + 0.25)], FAST).rows[1]
    assert row.status == "wrong"
    assert row.max_error == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(
    "runner",
    [
        Runner("broken", raising("no such library\nand more")),
        Runner("broken", lambda case: Prepared(raising("no such library"), "nowhere")),
    ],
    ids=["in prepare", "in the call"],
)
def test_a_raising_backend_is_listed_with_its_reason(case: Case, runner: Runner) -> None:
    rows = run_case(case, [BASELINE, runner, broken(lambda y: y, "last")], FAST).rows
    assert [row.backend for row in rows] == ["eager", "broken", "last"]
    assert rows[1].status == "failed"
    assert rows[1].reason == "RuntimeError: no such library"
    assert rows[1].timing is None
    assert rows[2].timing is not None


def test_a_long_reason_is_shortened(case: Case) -> None:
    row = run_case(case, [Runner("broken", raising("word " * 1000))], FAST).rows[0]
    assert row.reason is not None
    assert len(row.reason) < 250


def test_ratio_is_to_eager(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.run.interleave", lambda *_: {"eager": [[2.0], [4.0]], "fast": [[0.5], [0.7]]})
    eager, fast = run_case(case, [BASELINE, broken(lambda y: y, "fast")], FAST).rows
    assert eager.ratio_to_eager == 1
    assert fast.ratio_to_eager == pytest.approx(5)
    assert fast.samples_per_s == pytest.approx(4 / 0.6)


def test_without_eager_there_is_no_ratio(case: Case) -> None:
    row = run_case(case, [broken(lambda y: y)], FAST).rows[0]
    assert row.timing is not None
    assert row.ratio_to_eager is None


def test_accuracy_counts_every_digit_once_in_full_batches(case: Case) -> None:
    seen: list[int] = []

    def call(x: Tensor) -> Tensor:
        seen.append(len(x))
        y = case.model(x)
        return y.flip(1) if len(seen) == 3 else y  # wrong in the last batch: two digits and two fillers

    assert case.held_out is not None
    images, labels = case.held_out
    flipped = case.model(images[8:]).flip(1).argmax(dim=1)
    assert accuracy(call, case) == pytest.approx((8 + (flipped == labels[8:]).sum().item()) / 10)
    assert seen == [4, 4, 4]


def test_accuracy_needs_digits(case: Case) -> None:
    assert accuracy(case.model, Case("no digits", case.model, case.x)) is None


# The cases


def test_cases_are_both_models_on_real_data() -> None:
    made = cases("all")
    assert [case.name for case in made] == [
        "DeepLearningModel, batch 1",
        "DeepLearningModel, batch 16",
        "DeepLearningModel, batch 1024",
        "Net, batch 1",
        "Net, batch 16",
    ]
    assert [tuple(case.x.shape) for case in made] == [
        *((batch, 784) for batch in BATCHES["deep"]),
        *((batch, 3, 720, 480) for batch in BATCHES["net"]),
    ]
    assert all(not case.model.training and case.x.dtype == torch.float32 for case in made)
    assert torch.equal(made[2].x, digits("all")[0][:1024])
    assert torch.equal(made[3].x, photograph())
    assert [case.held_out is not None for case in made] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("model", "quick", "names"),
    [
        ("deep", True, ["DeepLearningModel, batch 1"]),
        ("net", False, ["Net, batch 1", "Net, batch 16"]),
        ("all", True, ["DeepLearningModel, batch 1", "Net, batch 1"]),
    ],
)
def test_cases_can_be_chosen(model: str, quick: bool, names: list[str]) -> None:
    assert [case.name for case in cases(model, quick)] == names


def test_photographs_of_a_batch_differ_and_stay_in_range() -> None:
    photos = variants(photograph(), 16)
    assert photos.abs().max() <= 1
    assert torch.equal(photos[:1], photograph())
    for i in range(16):
        for j in range(i):
            assert (photos[i] - photos[j]).abs().mean() > 0.01


def test_net_tells_right_from_wrong() -> None:
    torch.manual_seed(20)
    before = torch.get_rng_state()
    net = informative_net()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), informative_net().parameters(), strict=True))
    with torch.inference_mode():
        y = net(photograph())
    assert (y == 0.5).float().mean() < 0.2
    assert (y > 0.999).float().mean() < 0.01
    assert y.std() > 0.05


# The backends


@pytest.mark.parametrize("runner", RUNNERS, ids=[runner.name for runner in RUNNERS])
def test_backend_is_right_and_says_where_it_runs(runner: Runner) -> None:
    """On a small model with torch.compile's default cache: compiling the large ones is the bench's own job."""
    model = nn.Sequential(nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10), nn.Softmax(dim=1)).eval()
    held_out = digits()
    row = run_case(Case("small", model, held_out[0][:16], held_out), [runner], FAST).rows[0]
    assert (row.status, row.reason) == ("ok", None)
    with torch.inference_mode():
        right = (model(held_out[0]).argmax(dim=1) == held_out[1]).double().mean().item()
    assert row.accuracy == pytest.approx(right, abs=0.01)
    assert row.timing is not None
    assert row.prepare_s is not None
    assert row.first_call_s is not None
    where = {"torch.compile": "cpu, inductor", "onnxruntime": "CPUExecutionProvider"}
    assert (row.where or "").startswith(where.get(runner.name, "cpu"))


def test_all_four_are_compared() -> None:
    assert [runner.name for runner in RUNNERS] == ["eager", "torch.compile", "onnxruntime", "fastgraph"]


def test_a_backend_that_fails_while_it_is_timed_is_listed_with_its_reason(case: Case) -> None:
    calls = []

    def tired(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 10:
            raise RuntimeError("out of breath")
        return case.model(x)

    done = run_case(case, [BASELINE, Runner("tired", lambda case: Prepared(tired, "nowhere"))], FAST)
    eager, row = done.rows
    assert (row.status, row.reason, row.timing) == ("failed", "RuntimeError: out of breath", None)
    assert eager.timing is not None


# The report


@pytest.fixture
def reported() -> CaseReport:
    rows = (
        Row("eager", "ok", where="cpu", prepare_s=1e-5, first_call_s=2e-3, max_error=1e-7, accuracy=0.9859,
            warmed_up=True, timing=Timing(1234, 15, 5e-5, 1e-6, 6e-5), samples_per_s=20000.0, ratio_to_eager=1.0),
        Row("wrong one", "wrong", reason="its error is large", where="gpu", max_error=float("nan")),
        Row("absent one", "failed", reason="ImportError: [no] such thing"),
    )  # fmt: skip
    return CaseReport("small, batch 1", (1, 784), 1e-7, 3e-7, rows)


def shown(made: CaseReport) -> list[str]:
    """The lines of the table as the bench prints them."""
    console = Console(width=150, markup=False, record=True, file=io.StringIO())
    console.print(report.table(made))
    return console.export_text().splitlines()


def row_of(lines: list[str], backend: str) -> list[str]:
    """The cells of a backend's row."""
    (line,) = [line for line in lines if backend in line]
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_table_lists_every_backend_with_speed_or_reason(reported: CaseReport) -> None:
    lines = shown(reported)
    assert "small, batch 1: input [1, 784], error allowed 3.0e-07 (eager's own 1.0e-07)" in lines[0]
    assert row_of(lines, "eager  ") == [
        *("eager", "50.0 µs", "60.0 µs", "20,000", "1.00", "1,234", "1.0e-07", "98.59%", "10.0 µs", "2.0 ms", "cpu")
    ]
    assert row_of(lines, "wrong one") == ["wrong one", *"-----", "nan", *"---", "gpu; wrong: its error is large"]
    assert row_of(lines, "absent one") == ["absent one", *"---------", "failed: ImportError: [no] such thing"]


def test_table_says_when_the_warm_up_did_not_settle(reported: CaseReport) -> None:
    unstable = CaseReport("x", (1,), 0, 0, (Row("eager", "ok", warmed_up=False),))
    assert row_of(shown(unstable), "eager  ")[-1] == "not stable after warm-up"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (2.5e-6, "2.5 µs"), (0.0123, "12.3 ms"), (1.5, "1.50 s"), (0.0, "0.0 µs")]
)
def test_durations_are_in_the_unit_that_fits(seconds: float | None, text: str) -> None:
    assert report.duration(seconds) == text


def test_json_holds_everything(reported: CaseReport) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = report.as_json([reported], report.machine(), FAST, "python -m bench --quick")
    content = json.loads(text, parse_constant=refuse)
    assert content["command"] == "python -m bench --quick"
    assert set(content["machine"]) == {"cpu", "threads", "isa", "cuda", "python", "torch", "onnxruntime", "commit"}
    assert content["machine"]["threads"] == torch.get_num_threads()
    assert content["plan"]["rounds"] == 3
    (case,) = content["cases"]
    assert (case["case"], case["input_shape"], case["tolerance"]) == ("small, batch 1", [1, 784], 3e-7)
    eager, wrong, absent = case["rows"]
    assert eager["timing"] == {"calls": 1234, "rounds": 15, "median_s": 5e-5, "iqr_s": 1e-6, "p90_s": 6e-5}
    assert (eager["prepare_s"], eager["first_call_s"], eager["accuracy"]) == (1e-5, 2e-3, 0.9859)
    assert (wrong["status"], wrong["timing"], wrong["max_error"]) == ("wrong", None, None)
    assert absent["reason"] == "ImportError: [no] such thing"


def test_machine_lines_tell_what_the_figures_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    about = report.machine() | {"cpu": "Some CPU", "threads": 2, "isa": "avx2", "commit": "abc1234", "cuda": None}
    first, second = report.machine_lines(about)
    assert first.startswith("Some CPU, 2 threads, avx2; python 3.")
    assert f"torch {torch.__version__}, onnxruntime " in first
    assert first.endswith("commit abc1234")
    assert second == "CUDA: not present, CPU only"
    assert "H200 is present" in report.machine_lines(about | {"cuda": "H200"})[1]


def test_commit_is_that_of_the_checkout(tmp_path: Path) -> None:
    assert report._commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert commit.startswith(report._commit(tmp_path) or "nothing")
    (tmp_path / "site-packages").mkdir()
    assert report._commit(tmp_path / "site-packages") is None  # somebody else's checkout


# The command line


@pytest.fixture
def small_bench(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """The command line with one small case and little time."""
    monkeypatch.setattr(cli, "cases", lambda model, quick: [case])
    monkeypatch.setattr(cli, "QUICK", FAST)


@pytest.mark.usefixtures("small_bench")
def test_command_line_leaves_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "b"
    runners = [BASELINE, Runner(OURS.name, BASELINE.prepare), Runner("absent", raising("[peer] not installed"))]
    assert cli.main(["--quick", "--threads", "1", "--out", str(out)], runners) == 0
    printed = capsys.readouterr().out
    content = json.loads((out / "report.json").read_text())
    assert [row["backend"] for row in content["cases"][0]["rows"]] == ["eager", "fastgraph", "absent"]
    assert content["machine"]["threads"] == 1
    assert content["command"] == f"python -m bench --quick --threads 1 --out {out}"
    assert printed.startswith((out / "report.txt").read_text(encoding="utf-8"))
    assert "failed: RuntimeError: [peer]" in printed
    if not torch.cuda.is_available():
        assert "CUDA: not present, CPU only" in printed


@pytest.mark.usefixtures("small_bench")
@pytest.mark.parametrize("ours", [broken(lambda y: y + 1, OURS.name), Runner(OURS.name, raising("broken"))])
def test_command_line_fails_when_fastgraph_is_wrong(tmp_path: Path, ours: Runner) -> None:
    assert cli.main(["--quick", "--out", str(tmp_path)], [BASELINE, ours]) == 1


@pytest.mark.usefixtures("small_bench")
def test_first_calls_do_not_profit_from_earlier_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "DEFAULT", FAST)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "earlier")
    used: list[tuple[str, list[str]]] = []

    def look(case: Case) -> Prepared:
        folder = os.environ["TORCHINDUCTOR_CACHE_DIR"]
        used.append((folder, os.listdir(folder)))
        return BASELINE.prepare(case)

    assert cli.main(["--out", str(tmp_path)], [Runner(OURS.name, look)]) == 0
    ((folder, content),) = used
    assert content == []
    assert not Path(folder).exists()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "earlier"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet"], "argument --model: invalid choice: 'resnet'"),
        (["--threads", "0"], "argument --threads: must be a whole number from 1; got '0'"),
        (["--threads", "two"], "argument --threads: must be a whole number from 1; got 'two'"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--out", __file__], "argument --out: cannot make the folder: "),
    ],
)
def test_bad_arguments_end_with_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m bench: error: {message}")


def test_missing_data_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--model", "net", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'fastgraph[test]'" in line


def test_wrong_instruction_set_ends_with_one_line() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "bench"], env=os.environ | {"FASTGRAPH_CPU": "mmx"}, capture_output=True, text=True
    )
    assert said.returncode == 2
    (line,) = said.stderr.splitlines()
    assert line.startswith("python -m bench: error: FASTGRAPH_CPU: 'mmx' is unknown")
