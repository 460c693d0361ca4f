"""The grid of one product: its cells and their targets, the operator in front, and the summary, from known figures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastgraph.bench.backends import Setting
from fastgraph.bench.cases import Case
from fastgraph.bench.perf import cli, gemm, targets
from fastgraph.bench.perf.result import Result, Sessions, against_target
from fastgraph.bench.perf.target import Target
from fastgraph.bench.results import CaseReport, Row
from fastgraph.bench.session import Session
from tests.bench_samples import FAST, case_report, timing


def cell(inputs: int, behind: bool, batch: int) -> Target:
    """The first cell of a layer with so many inputs."""
    found = [t for t in gemm.grid() if t.case.batch == batch and (t.operator is not None) is behind]
    return next(t for t in found if t.case.build().x.shape[1] == inputs)


def test_the_grid_has_every_size_alone_and_behind_an_operator() -> None:
    cells = gemm.grid()
    assert len({t.case.name for t in cells}) == len(cells) == 2 * len(gemm.ROWS) * len(gemm.LAYERS) == 128
    assert sum(t.operator is not None for t in cells) == 64
    quick = {t.case.name for t in gemm.grid(quick=True)}
    assert 0 < len(quick) < 32
    assert quick <= {t.case.name for t in cells}


def test_the_ceiling_counts_from_64_rows() -> None:
    asked = {(t.case.batch, t.ratio, t.share) for t in gemm.grid()}
    assert asked == {(n, 1.1, None) for n in (1, 8, 49)} | {(n, 1.0, 0.85) for n in (64, 197, 785, 1024, 4096)}


def test_it_has_to_be_asked_for() -> None:
    assert not any(t.group == gemm.GROUP for t in targets.choose([], "fp32"))
    assert len(targets.choose(["gemm"], "fp32")) == 128
    assert {t.case.batch for t in targets.choose(["gemm:197"], "fp32")} == {197}
    assert targets.choose(["gemm"], "bf16") == []
    assert {"gemm", "gemm:4096"} <= set(targets.names())


@pytest.mark.parametrize("behind", [False, True])
def test_a_cell_is_one_layer_with_bias_and_relu(behind: bool) -> None:
    built = cell(96, behind, 8).case.build()
    (weight, bias) = built.model.parameters()
    x = 2 * built.x if behind else built.x
    with torch.no_grad():
        torch.testing.assert_close(built.model(built.x), torch.relu(x @ weight.T + bias))
    assert (built.x.shape, weight.shape) == ((8, 96), (384, 96))


def test_the_operator_gets_the_same_rows_and_is_that_of_the_cell() -> None:
    target = cell(96, True, 8)
    assert target.operator is not None
    operator, whole = target.operator.build(), target.case.build()
    torch.testing.assert_close(operator.x, whole.x)
    torch.testing.assert_close(operator.model(operator.x), whole.model[0](whole.x))


def known(target: Target, ours_s: float, peer_s: float = 5e-5) -> CaseReport:
    """A cell whose FMA ceiling does its operations in 10 us."""
    report = case_report(target.case.batch, ours_s)
    assert report.work is not None
    rows = tuple(row for row in report.rows if row.backend == "fastgraph")
    rate = report.work.flops / 1e-5
    rows = (*rows, Row("onnxruntime", "ok", timing=timing(peer_s)), Row("eager", "ok", timing=timing(9e-5)))
    return replace(report, case=target.case.name, rows=rows, ceilings={"fma": (rate,) * 9})


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> dict[str, CaseReport]:
    """Sessions that measure nothing and give these reports, by the case's name; a report of its own for operators."""
    by_name: dict[str, CaseReport] = {}

    def start(self: Session, backends: object, setting: Setting, stack: object) -> None:
        self.setting, self.backends = setting, backends  # type: ignore[assignment]

    monkeypatch.setattr(Session, "__init__", start)
    monkeypatch.setattr(Session, "run", lambda self, case, *_: by_name[case.name])
    return by_name


def measure(reports: dict[str, CaseReport], target: Target, ours_s: float, peer_s: float, operator_s: float) -> Result:
    reports[target.case.name] = known(target, ours_s, peer_s)
    if target.operator is not None:
        reports[target.operator.name] = replace(case_report(), rows=(Row("eager", "ok", timing=timing(operator_s)),))
    backends = {name: cli.BACKENDS[name] for name in ("eager", "onnxruntime", "fastgraph")}
    session = Session(backends, Setting("fp32", 2), None)  # type: ignore[arg-type]
    return against_target(Sessions(session, eager=session), target, FAST)


def test_the_operators_own_time_counts_against_no_ceiling(reports: dict[str, CaseReport]) -> None:
    alone = measure(reports, cell(96, False, 64), 2e-5, 3e-5, 0.0)
    assert (alone.operator_s, alone.ratio) == (None, pytest.approx(1.5))
    assert alone.share == pytest.approx(0.5)
    assert alone.short == ("ceiling",)
    behind = measure(reports, cell(96, True, 64), 2e-5, 3e-5, 9e-6)
    assert (behind.operator_s, behind.ratio) == (pytest.approx(9e-6), pytest.approx(1.5))  # part of both sides
    assert behind.share == pytest.approx(1e-5 / 1.1e-5, rel=1e-3)
    assert behind.short == ()


def test_an_operator_that_takes_all_of_the_time_leaves_no_share(reports: dict[str, CaseReport]) -> None:
    result = measure(reports, cell(96, True, 64), 2e-5, 3e-5, 2.5e-5)
    assert result.share is None
    ((text, content),) = gemm.summary([result])
    assert text.startswith("gemm behind an operator, 2 threads: best peer / ours 1.50")
    assert content["shares"] == {}


def test_the_summary_has_the_mean_and_the_worst(reports: dict[str, CaseReport]) -> None:
    chosen = [cell(96, False, batch) for batch in (1, 64, 197)]
    times = [(1e-5, 4e-5), (2e-5, 1e-5), (1.25e-5, 2.5e-5)]  # ratios 4, 0.5 and 2
    results = [measure(reports, t, ours, peer, 0.0) for t, (ours, peer) in zip(chosen, times, strict=True)]
    results[1] = replace(results[1], report=replace(results[1].report, others=0.41))
    ((text, content),) = gemm.summary(results)
    assert content["geometric_mean"] == pytest.approx((4 * 0.5 * 2) ** (1 / 3))
    first, second, third = text.splitlines()
    assert first == (
        "gemm alone, 2 threads: best peer / ours 1.59 (1.10) as geometric mean of 3 cases; "
        "worst 0.50 96→384 relu, batch 64; 2.00 96→384 relu, batch 197; 4.00 96→384 relu, batch 1"
    )
    assert second == (
        "  fma from 64 rows 65% (85% each) as median of 2 cases; worst 50% 96→384 relu, batch 64; "
        "80% 96→384 relu, batch 197"
    )
    assert third == "  doubtful: other processes took up to 41% of the processors"
    ((text, _),) = gemm.summary(results[1:2])
    assert "0.50 (1.10) short" in text
    assert list(gemm.summary([])) == []


def test_the_command_writes_the_grid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], reports: dict[str, CaseReport]
) -> None:
    for target in gemm.grid(quick=True):
        reports[target.case.name] = known(target, 2e-5, 3e-5)
        for case in filter(None, [target.operator]):
            reports[case.name] = replace(case_report(), rows=(Row("eager", "ok", timing=timing(9e-6)),))
    plans = []

    def run(self: Session, case: Case, plan: object, *_: object) -> CaseReport:
        plans.append(plan)
        return reports[case.name]

    monkeypatch.setattr(Session, "run", run)
    argv = ["--cases", "gemm", "--quick", "--threads", "2", "--peers", "eager,onnxruntime", "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    assert set(plans) == {cli.QUICK}
    printed = capsys.readouterr().out
    assert "gemm alone, 2 threads: best peer / ours 1.50 (1.10)" in printed
    assert "gemm behind an operator, 2 threads: best peer / ours 1.50 (1.10)" in printed
    content = json.loads((tmp_path / "perf.json").read_text())
    assert len(content["results"]) == len(gemm.grid(quick=True))
    alone, behind = content["others"]
    assert (alone["shares"]["768→3072 relu, batch 64"], behind["ratios"]["x+x, 256→256 relu, batch 1"]) == (
        pytest.approx(0.5),
        pytest.approx(1.5),
    )
