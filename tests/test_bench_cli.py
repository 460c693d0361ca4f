"""The command line: one real run from end to end, what it refuses, what it keeps, and the library's own function."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import rich.progress
import torch
from rich.console import Console

from fastgraph import bench
from fastgraph.bench import arguments, cases, cli, runs
from fastgraph.bench.backends import BACKENDS, Setting
from fastgraph.bench.ceilings.measured import ceilings_of
from fastgraph.bench.plan import MLPERF_QUERIES, affordable_rounds
from fastgraph.bench.report.report import Report
from fastgraph.bench.results import CaseReport
from fastgraph.bench.session import Progress, Session
from fastgraph.bench.timing import CALLS_FOR_P99
from tests.bench_samples import FAST, MACHINE, case_report, report

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads(files("fastgraph.bench.report").joinpath("report.schema.json").read_text())


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sessions that measure nothing: each case gives a known report; the names of those that were asked for."""
    asked: list[str] = []

    def run(self: Session, case: cases.Case, *_: object, **__: object) -> CaseReport:
        asked.append(case.name)
        return replace(case_report(case.batch), case=case.name, model=case.model)

    monkeypatch.setattr(Session, "__init__", lambda *_: None)
    monkeypatch.setattr(Session, "run", run)
    return asked


def test_a_quick_run_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    argv = ["--quick", "--model", "deep", "--backends", "eager,fastgraph", "--threads", "1", "--out", str(out)]
    done = subprocess.run([sys.executable, "-m", "bench", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads((out / "report.json").read_text())
    jsonschema.validate(content, SCHEMA)
    (case,) = content["cases"]
    assert [(row["backend"], row["status"]) for row in case["rows"]] == [("eager", "ok"), ("fastgraph", "ok")]
    assert all(row["accuracy"] == pytest.approx(350 / 355) for row in case["rows"])
    assert content["complete"]
    assert content["command"] == f"python -m bench {' '.join(argv)}"
    assert (out / "report.md").exists()
    assert (out / "report.html").exists()
    assert "DeepLearningModel, batch 1: fp32, cpu, 1 threads" in done.stdout
    again = [sys.executable, "-m", "bench", "compare", str(out / "report.json"), str(out / "report.json")]
    compared = subprocess.run(again, capture_output=True, text=True, check=False)
    assert compared.returncode == 0, compared.stderr
    assert "no difference" in compared.stdout


def test_without_arguments_everything_is_measured(instant: list[str], tmp_path: Path) -> None:
    assert cli.main(["--out", str(tmp_path)]) == 0
    assert instant == [case.name for case in [*cases.deep([1, 16, 1024]), *cases.net([1, 4])]]
    assert cli.chosen_backends(arguments.parser().parse_args([])) == list(BACKENDS)


def test_what_compiles_longest_does_so_for_the_first_batch_alone() -> None:
    parse, made = arguments.parser().parse_args, [*cases.deep([1, 16]), *cases.net([4, 1])]
    left_out = cli.chosen_left_out(parse([]), made)
    assert {name: list(reasons) for name, reasons in left_out.items()} == {
        "DeepLearningModel, batch 16": ["compile-max"],
        "Net, batch 1": ["compile-max"],
    }
    for asked in ("all", "compile-max"):
        assert cli.chosen_left_out(parse(["--backends", asked]), made) == {}
    assert cli.chosen_backends(parse(["--backends", "all"])) == list(BACKENDS)


def test_a_budget_is_spent_on_as_many_rounds_as_fit() -> None:
    parse = arguments.parser().parse_args
    plain, budget, both = (
        cli.chosen_plan(parse(argv)) for argv in ([], ["--budget", "60"], ["--budget", "60", "--rounds", "5"])
    )
    calls = [1e-4] * 4
    assert affordable_rounds(plain, calls) == 15
    assert 60 * 0.9 < affordable_rounds(budget, calls) * 4 * budget.block_s * 1.1 <= 60
    assert affordable_rounds(both, calls) == 5


def test_modes_are_mlperfs_scenarios(instant: list[str], tmp_path: Path) -> None:
    assert cli.main(["--mode", "single-stream", "--out", str(tmp_path)]) == 0
    assert Report.load(tmp_path / "report.json").plan.min_calls == MLPERF_QUERIES
    assert cli.main(["--mode", "offline", "--out", str(tmp_path)]) == 0
    assert instant == [
        *("DeepLearningModel, batch 1", "Net, batch 1"),
        *("DeepLearningModel, batch 8192", "Net, batch 16"),
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("100us", 1e-4), ("100 µs", 1e-4), ("1.5ms", 1.5e-3), (".5s", 0.5), ("20ns", 2e-8), ("1min", 60), ("0", 0)],
)
def test_pauses_are_times_with_their_unit(text: str, seconds: float) -> None:
    assert arguments.parser().parse_args(["--pause", text]).pause == pytest.approx(seconds)


def test_plans_hold_what_was_asked_for() -> None:
    parse = arguments.parser().parse_args
    paused, both = (cli.chosen_plan(parse(argv)) for argv in (["--pause", "20us"], ["--processes", "3"]))
    assert (paused.pause_s, paused.processes, paused.rounds) == (pytest.approx(2e-5), 1, 15)
    assert (both.pause_s, both.processes) == (0, 3)
    argv = ["--scenario", "server", "--rate"]
    fast, slow, long = (cli.chosen_plan(parse([*argv, *more])) for more in (["2e3"], ["50"], ["2e3", "--budget", "30"]))
    assert fast.block_s * fast.rounds * 2e3 == pytest.approx(CALLS_FOR_P99)
    assert slow.block_s * slow.rounds == pytest.approx(10)
    assert long.block_s * long.rounds == pytest.approx(30)
    for plan in (fast, slow, long):
        assert affordable_rounds(plan, [1e-3] * len(BACKENDS)) == plan.rounds == 5


@pytest.mark.usefixtures("instant")
def test_a_peer_that_is_not_installed_is_said_once_at_the_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not there
    line = "the OpenVINO backend needs openvino: pip install 'fastgraph[peers]'"
    assert cli.main(["--quick", "--backends", "eager,openvino,fastgraph", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count(line) == 1
    assert printed.index(f"not measured: {line}") < printed.index("DeepLearningModel")
    made = Report.load(tmp_path / "report.json")
    assert made.absent == (line,)
    assert (tmp_path / "report.html").read_text().count("fastgraph[peers]") == 1
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--backends", "openvino", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert f"--backends: none of them is installed: {line}" in capsys.readouterr().err


def test_a_peer_that_is_broken_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('libtbb.so: cannot open', name='_ov')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    assert runs.installed(["eager", "openvino"]) == (["eager", "openvino"], ())


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("target", ["bench", "perf"])
def test_make_installs_the_peers_before_it_measures(target: str, tmp_path: Path) -> None:
    said = subprocess.run(
        ["make", "--dry-run", target, f"VENV={tmp_path}/new"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert 0 < said.index("openvino") < said.index("python -m bench")


def what_stands_on(written: str) -> list[str]:
    """The lines of a terminal after this was written to it: knows line ends, erased lines and the cursor's way up."""
    lines, at = [""], 0
    for part in re.split(r"(\n|\r|\x1b\[[0-9;?]*[A-Za-z])", written):
        if part == "\n":
            at += 1
            lines += [""] * (at + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[at] = ""
        elif part.endswith("A") and part.startswith("\x1b["):
            at -= int(part[2:-1] or 1)
        elif part and part != "\r" and not part.startswith("\x1b["):
            lines[at] += part
    return lines


def test_progress_leaves_no_half_drawn_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar is erased before anything else is printed in its place."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, highlight=False)

    def run(self: Session, case: cases.Case, *_: object, progress: Progress, **__: object) -> CaseReport:
        progress(f"{case.name}: rounds", 0.5)
        return replace(case_report(case.batch), case=case.name, model=case.model)

    monkeypatch.setattr(Session, "__init__", lambda *_: None)
    monkeypatch.setattr(Session, "run", run)
    asked = runs.Run(tuple(cases.deep([1, 16])), ["eager"], (Setting(threads=1),), FAST, "bench")
    runs.measure(asked, dict(MACHINE), console)
    assert "━" in screen.getvalue()
    assert " left " in screen.getvalue()
    lines = what_stands_on(screen.getvalue())
    assert not any("━" in line for line in lines)
    assert sum(line.startswith("DeepLearningModel, batch 1") for line in lines) == 2
    assert max(map(len, lines)) <= 80


def test_progress_goes_on_within_a_case() -> None:
    bar = rich.progress.Progress(console=Console(file=io.StringIO()))
    tell = runs.ProgressReport(Console(file=io.StringIO()), 4, bar)
    completed = []
    for share in (0.25, 0.75):
        tell("something", share)
        completed.append(bar.tasks[0].completed)
    tell.advance()
    tell("the next", 0.5)
    assert [*completed, bar.tasks[0].completed] == [0.25, 0.75, 1.5]


def test_a_stopped_run_keeps_what_it_has(
    instant: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Session.run

    def stop_at_the_second(self: Session, case: cases.Case, *rest: object, **options: object) -> CaseReport:
        if instant:
            raise KeyboardInterrupt
        return run(self, case, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "run", stop_at_the_second)
    cli.main(["--out", str(tmp_path)])
    kept = Report.load(tmp_path / "report.json")
    assert (len(kept.cases), kept.complete) == (1, False)
    assert "stopped: the report has what was measured until now" in capsys.readouterr().out


@pytest.mark.usefixtures("instant")
def test_a_folder_that_becomes_unwritable_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = Path.write_text

    def refuse(self: Path, *rest: object, **options: object) -> int:
        if self.parent == tmp_path:
            raise OSError("disk full")
        return write(self, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr("fastgraph.bench.cli.mkdtemp", lambda prefix: str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--quick", "--model", "deep", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "cannot write to the folder: disk full; it went to" in capsys.readouterr().out
    assert Report.load(tmp_path / "other" / "report.json").cases


def test_status_is_1_when_fastgraph_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = case_report()
    rows = tuple(replace(row, status="wrong") if row.backend == "fastgraph" else row for row in made.rows)
    monkeypatch.setattr("fastgraph.bench.cli.measure", lambda *_: report(replace(made, rows=rows)))
    assert cli.main(["--quick", "--out", str(tmp_path)]) == 1


def test_compare_ends_with_1_on_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, ours_s in (("a", 2e-5), ("b", 2.5e-5)):
        (tmp_path / f"{name}.json").write_text(report(case_report(16, ours_s)).to_json())
    before, after = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    assert cli.main(["compare", before, before]) == 0
    assert cli.main(["compare", before, after]) == 1
    assert "1.25 " in capsys.readouterr().out
    assert cli.main(["compare", after, before]) == 0
    assert cli.main(["compare", before, after, "--threshold", "0.5"]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "resnet"], "--model resnet needs --input-shape, the batch first"),
        (
            ["--model", "resnet", "--input-shape", "1,2"],
            "a model must be deep, net, all or module:callable; got 'resnet'",
        ),
        (["--model", "deep", "--input-shape", "1,2"], "--input-shape is for a model of your own"),
        (["--backends", "eager,jax"], "argument --backends: must be of eager, compile"),
        (["--batches", "4,0"], "argument --batches: must be a whole number from 1; got '0'"),
        (["--batches", "-1"], "argument --batches: "),
        (["--threads", "two"], "argument --threads: must be a whole number from 1; got 'two'"),
        (["--budget", "0"], "argument --budget: must be a number of seconds above 0; got '0'"),
        (["--dtype", "fp8"], "argument --dtype: must be of fp32, bf16; got 'fp8'"),
        (["--mode", "burst"], "argument --mode/--scenario: invalid choice: 'burst'"),
        (["--mode", "server"], "--rate: mode server needs it, no other mode has it"),
        (["--rate", "100"], "--rate: mode server needs it, no other mode has it"),
        (["--mode", "server", "--rate", "-1"], "argument --rate: must be a number above 0; got '-1'"),
        (["--pause", "100"], "argument --pause: must be a time with its unit (ns, us, µs, ms, s, min); got '100'"),
        (["--pause", "1 fortnight"], "argument --pause: must be a time with its unit"),
        (
            ["--pause", "1ms", "--mode", "offline"],
            "--pause: goes with the modes rounds and single-stream, and with one",
        ),
        (["--pause", "1ms", "--processes", "2"], "--pause: goes with the modes rounds and single-stream, and with one"),
        (["--processes", "0"], "argument --processes: must be a whole number from 1; got '0'"),
        (["--processes", "2", "--mode", "offline"], "--processes: goes with mode rounds; got mode offline"),
        (["--model-gpu", "V100"], "argument --model-gpu: invalid choice: 'V100'"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--out", __file__], "argument --out: cannot write to the folder: "),
        (["compare", "a.json"], "the following arguments are required: B.json"),
        (["compare", "none.json", "none.json"], "none.json: cannot be read"),
        (["perf", "--cases", "deep:3"], "argument --cases: must be of deep, net, chains"),
    ],
)
def test_bad_arguments_end_with_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m bench")
    assert f"error: {message}" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--device", "cuda", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "--device cuda: there is no CUDA device here; allowed: auto, cpu" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []  # no empty report


def test_with_a_device_cuda_is_measured_in_four_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    given = arguments.parser().parse_args(["--threads", "2"])
    assert [str(setting) for setting in cli.chosen_settings(given)] == [
        "fp32, cpu, 2 threads",
        "fp32, cuda, warm L2, plain launches, copies not included",
        "fp32, cuda, warm L2, plain launches, copies included",
        "fp32, cuda, warm L2, one CUDA graph, copies not included",
        "fp32, cuda, cold L2, plain launches, copies not included",
    ]


def test_a_report_of_another_version_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"schema_version": 0}')
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", str(path), str(path)])
    assert stopped.value.code == 2
    assert "its schema version is 0; this bench reads version 3" in capsys.readouterr().err


def test_missing_data_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "fastgraph.bench.cli.photograph", lambda: (_ for _ in ()).throw(ModuleNotFoundError("pip install it"))
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--model", "net", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "python -m bench: error: pip install it"


def test_wrong_instruction_set_ends_with_one_line() -> None:
    environment = os.environ | {"FASTGRAPH_CPU": "mmx"}
    said = subprocess.run([sys.executable, "-m", "bench"], env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 2
    (line,) = said.stderr.splitlines()
    assert line.startswith("python -m bench: error: FASTGRAPH_CPU: 'mmx' is unknown")


@pytest.mark.parametrize(("dtype", "counts"), [("fp32", False), ("bf16", True)])
def test_the_dot_product_limits_bf16_alone(dtype: str, counts: bool) -> None:
    names = ceilings_of(Setting(dtype, 2)).names
    assert ("bf16" in names) is counts
    assert {"fma", "L2", "L3", "memory", "launch"} <= set(names)


def test_first_calls_do_not_profit_from_earlier_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "earlier")
    with runs._nothing_compiled():
        folder = os.environ["TORCHINDUCTOR_CACHE_DIR"]
        assert os.listdir(folder) == []
    assert not Path(folder).exists()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "earlier"


@pytest.mark.usefixtures("instant")
def test_bench_is_a_library_too() -> None:
    made = bench.run(cases.deep([1, 16]), ["eager", "fastgraph"], plan=FAST)
    assert [case.case for case in made.cases] == ["DeepLearningModel, batch 1", "DeepLearningModel, batch 16"]
    assert "<table" in made._repr_html_()
    with pytest.raises(ValueError, match="backends: needs some of eager, .*; got jax"):
        bench.run(cases.deep([1]), ["jax"])
    with pytest.raises(ValueError, match="cases: needs at least one; got none"):
        bench.run([])


def test_a_case_of_ones_own_model() -> None:
    model, x = torch.nn.Linear(6, 3), torch.randn(5, 6)
    made = cases.own("mine", model, x)
    assert made.name == "mine, batch 5"
    assert made.build().x is x
