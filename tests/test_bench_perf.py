"""``python -m bench perf``: what is short of its target is said so, round by round, from known figures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastgraph.bench.backends import BACKENDS, Setting
from fastgraph.bench.perf import cli, targets
from fastgraph.bench.perf.optimize_cost import OptimizeTimer
from fastgraph.bench.perf.result import Sessions, against_target
from fastgraph.bench.perf.tail import Tail
from fastgraph.bench.plan import Plan
from fastgraph.bench.results import CaseReport, Row
from fastgraph.bench.session import Session
from tests.bench_samples import case_report, timing


def with_peer(batch: int, peer_s: float, ours_s: float) -> CaseReport:
    """A case in which onnxruntime has a speed; the FMA ceiling is such that ours at 20 us reaches 95 % of it."""
    made = case_report(batch, ours_s)
    assert made.work is not None
    rows = tuple(
        Row("onnxruntime", "ok", timing=timing(peer_s)) if row.backend == "onnxruntime" else row for row in made.rows
    )
    return replace(made, rows=rows, ceilings={"fma": (made.work.flops / 2e-5 / 0.95,) * 9, "weights": (2.14e11,) * 9})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[int, CaseReport]:
    """Sessions that measure nothing and give these reports, by batch."""
    found: dict[int, CaseReport] = {}

    def start(self: Session, backends: object, setting: Setting, stack: object) -> None:
        self.setting, self.backends = setting, backends  # type: ignore[assignment]

    monkeypatch.setattr(Session, "__init__", start)
    monkeypatch.setattr(Session, "run", lambda self, case, *_: found[case.batch])
    return found


def lines(tmp_path: Path, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    options = ["--peers", "onnxruntime", "--threads", "2", "--dtype", "fp32", "--out", str(tmp_path)]
    assert cli.main([*argv, *options]) == 0
    return capsys.readouterr().out


def test_what_reaches_its_target_is_not_short(
    measured: dict[int, CaseReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured[128] = with_peer(128, 2.5e-5, 2e-5)
    said = lines(tmp_path, capsys, "--cases", "deep:128")
    assert "1.25 (1.00); fma 95% (92%)\n" in said
    assert "short: 0 of 1 cases" in said
    (result,) = json.loads((tmp_path / "perf.json").read_text())["results"]
    assert (result["best_peer"], result["ratio"], result["short"]) == ("onnxruntime", pytest.approx(1.25), [])


def test_what_is_under_its_target_is_short(
    measured: dict[int, CaseReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured[128] = with_peer(128, 2e-5, 2.2e-5)
    said = lines(tmp_path, capsys, "--cases", "deep:128")
    assert "0.91 (1.00) short; fma 86% (92%) short" in said
    assert "(fp32, 2 threads): ratio, ceiling" in said


def test_batch_1_counts_against_reading_the_weights(
    measured: dict[int, CaseReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured[1] = with_peer(1, 3e-5, 2e-5)  # 2.14 MB in 20 us: 107 GB/s of 214
    assert "1.50 (1.60) short; weights 50% (80%) short" in lines(tmp_path, capsys, "--cases", "deep:1")


def test_small_batches_are_held_against_batch_16(
    measured: dict[int, CaseReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured[2], measured[4], measured[16] = (
        with_peer(batch, 4e-5, s) for batch, s in ((2, 3e-5), (4, 1e-5), (16, 2e-5))
    )
    said = lines(tmp_path, capsys, "--cases", "deep:2,deep:4,deep:16")
    assert "batch 2 / batch 16: 1.50 (1.00) short" in said
    assert "batch 4 / batch 16: 0.50 (1.00)\n" in said


def test_bf16_is_held_against_our_fp32(measured: dict[int, CaseReport]) -> None:
    made = with_peer(128, 4e-5, 2e-5)
    rows = (*made.rows, Row("fastgraph fp32", "ok", timing=timing(3e-5)))
    measured[128] = replace(made, rows=rows)
    (target,) = targets.choose(["deep:128"], "bf16")
    setting = Setting("bf16", 2)
    session = Session(cli._backends(["onnxruntime"], setting), setting, None)  # type: ignore[arg-type]
    result = against_target(Sessions(session), target, Plan(3, 0.01, 0.1, 1))
    assert (result.fp32_ratio, result.fp32_ratio_target) == (pytest.approx(1.5), 1.7)
    assert result.best_peer == "onnxruntime"  # ours in fp32 is no peer
    assert result.short == ("ratio to fp32",)


def test_ours_without_a_speed_is_short(measured: dict[int, CaseReport]) -> None:
    made = with_peer(128, 4e-5, 2e-5)
    rows = tuple(Row("fastgraph", "wrong", "its error") if row.backend == "fastgraph" else row for row in made.rows)
    measured[128] = replace(made, rows=rows)
    (target,) = targets.choose(["deep:128"], "fp32")
    session = Session({}, Setting("fp32", 2), None)  # type: ignore[arg-type]
    assert against_target(Sessions(session), target, Plan(3, 0.01, 0.1, 1)).short == ("wrong: its error",)


def test_tail_is_the_ratio_of_the_99th_percentiles() -> None:
    assert Tail("x", 100, 1e-5, 2e-5, 1e-5, 5e-5).ratio == pytest.approx(2.5)


def test_cost_of_optimize_is_measured() -> None:
    (case,) = targets.choose(["deep:1"], "fp32")
    cost = OptimizeTimer().measure(case.case)
    assert 1e-4 < cost.optimize_s < 10
    assert cost.packing_bytes_per_s > 1e6
    assert 1.0 <= cost.packed_ratio < 1.2


def test_small_nets_are_measured_against_eager_alone() -> None:
    chosen = targets.choose(["nets"], "fp32")
    assert {target.case.batch for target in chosen} == {1, 64}
    ((peers, group),) = cli._groups(chosen, None)
    assert (peers, group) == (("eager",), chosen)
    for target in targets.choose(["nets:1"], "fp32"):
        assert target.ratio == 1.0
        built = target.case.build()
        with torch.no_grad():
            assert built.model(built.x).isfinite().all()


def test_what_runs_our_kernels_is_no_peer_whatever_its_name(measured: dict[int, CaseReport]) -> None:
    made = with_peer(128, 4e-5, 2e-5)
    compiled = BACKENDS["fastgraph-compile"]
    measured[128] = replace(made, rows=(*made.rows, Row(compiled.name, "ok", timing=timing(1e-5))))
    (target,) = targets.choose(["deep:128"], "fp32")
    backends = {name: BACKENDS[name] for name in ("onnxruntime", "fastgraph-compile", "fastgraph")}
    session = Session(backends, Setting("fp32", 2), None)  # type: ignore[arg-type]
    assert against_target(Sessions(session), target, Plan(3, 0.01, 0.1, 1)).best_peer == "onnxruntime"


def test_options_change_a_targets_own_plan() -> None:
    parse = cli._parser().parse_args
    (target,) = targets.choose(["deep:128"], "fp32")
    assert cli._plan(parse([]), target.plan) == Plan(rounds=11, block_s=0.04, warm_up_s=0.5, case_s=3.0)
    assert cli._plan(parse(["--budget", "9", "--rounds", "5"]), target.plan) == replace(target.plan, rounds=5, case_s=9)
    assert cli._plan(parse(["--quick", "--block", "0.5"]), target.plan) == replace(cli.QUICK, block_s=0.5)
