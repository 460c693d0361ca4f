"""Random modules through all that the package offers, against eager; and that the comparison sees what it is to see."""

import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastgraph
from tests import fuzz
from tests.fuzz import runner
from tests.fuzz.__main__ import main
from tests.fuzz.compare import MINOR, Difference, Reference, Session, compare
from tests.fuzz.program import Program
from tests.fuzz.shrink import shrink
from tests.fuzz.stages import STAGES, Finding, Report, check, stages_of

COUNT = 200
# Refusals that are documented: sizes that torch.export cannot free, nested graphs in files, operators without ONNX.
REFUSED = {"optimize": 0.05, "save": 0.15, "onnx": 0.25}
CALLS = ((3, False), (3, False), (2, True))
PROGRAM = Program(
    seed=1,
    inputs={"x": "torch.randn(B, 4)"},
    init=["self.l = nn.Linear(4, 4)", "self.register_buffer('count', torch.zeros(4))"],
    steps=[["self.count += 1"], ["t0 = self.l(x) + self.count"], ["t1 = t0 * 2"], ["t2 = t1.view(-1)"]],
    result="t1, t2, x",
)


@pytest.fixture(scope="module")
def summary() -> runner.Summary:
    """The modules of the first seeds through all stages, the costly ones on their share."""
    return runner.run(range(COUNT), jobs=2)


def test_modules(summary: runner.Summary) -> None:
    assert summary.modules == COUNT
    shown = [f"{f.stage}: {f.kind}: {f.detail}\n{f.source}" for f in summary.grave[:5]]
    assert not summary.grave, "\n\n".join([*shown, str(summary)])


@pytest.mark.parametrize("stage", REFUSED)
def test_few_are_refused(summary: runner.Summary, stage: str) -> None:
    assert summary.stages[stage] >= COUNT // 20
    assert summary.share_refused(stage) <= REFUSED[stage], str(summary)


def test_a_seed_is_a_module() -> None:
    first, make_inputs = fuzz.build(11)
    second, again = fuzz.build(11)
    assert [n for n, _ in first.named_parameters()] == [n for n, _ in second.named_parameters()]
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(make_inputs(3), again(3), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert len({fuzz.generate(seed).source for seed in range(30)}) == 30


def _differences(function: Callable[[nn.Module, torch.Tensor], Any]) -> list[Difference]:
    """What the comparison says of eager's own module, called through `function`."""
    reference, model = Reference(PROGRAM, CALLS), PROGRAM.build()
    session = Session(PROGRAM, model, lambda x: function(model, x))
    return [d for i, outcome in enumerate(session.run(CALLS)) for d in compare(reference, i, outcome)]


def test_eager_is_like_eager() -> None:
    assert _differences(lambda model, x: model(x)) == []


class _Scaled(torch.autograd.Function):
    """The identity with a wrong gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 1.001


def _changed(change: Callable[..., Any]) -> Callable[[nn.Module, torch.Tensor], Any]:
    return lambda model, x: change(*model(x))


def _without_write(model: nn.Module, x: torch.Tensor) -> Any:
    results = model(x)
    model.count.sub_(1)  # type: ignore[operator, union-attr]
    return results


def _writing_input(model: nn.Module, x: torch.Tensor) -> Any:
    results = model(x)
    x.detach()[0] = 7
    return results


def _raising(model: nn.Module, x: torch.Tensor) -> Any:
    raise RuntimeError("broken")


def _once_more(y: torch.Tensor, z: torch.Tensor, x: torch.Tensor) -> Any:
    again = y.mT.contiguous().mT
    return again, again.view(-1) if again.is_contiguous() else again.mT.flatten(), x


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("value", _changed(lambda y, z, x: (y.mul_(1 + 2e-5), z, x))),
        ("value", _changed(lambda y, z, x: (y.index_fill_(0, torch.tensor(0), torch.nan), z, x))),
        ("dtype", _changed(lambda y, z, x: (y.double(), z, x))),
        ("shape", _changed(lambda y, z, x: (z, y, x))),
        ("structure", _changed(lambda y, z, x: [y, z, x])),
        ("structure", _changed(lambda y, z, x: (y, z))),
        ("structure", _changed(lambda y, z, x: (y, z, None))),
        ("alias", _changed(lambda y, z, x: (y, z.clone(), x))),
        ("alias", _changed(lambda y, z, x: (y, z, x.clone()))),
        ("alias", lambda model, x: (lambda y, z, x: (y, z, x.expand(2, *x.shape)[1].view_as(x).clone()))(*model(x))),
        ("requires_grad", _changed(lambda y, z, x: (y, z.detach(), x))),
        ("state", _without_write),
        ("state", _writing_input),
        ("gradient", lambda model, x: model(_Scaled.apply(x))[:2] + (x,)),
        ("raises RuntimeError", _raising),
        ("strides", _changed(_once_more)),
    ],
)
def test_comparison_sees(kind: str, function: Callable[[nn.Module, torch.Tensor], Any]) -> None:
    assert kind in {difference.kind for difference in _differences(function)}


def test_minor_differences_come_last() -> None:
    kinds = [d.kind for d in _differences(_changed(_once_more))]
    first = kinds[: kinds.index("strides") + 1]
    assert first[0] == "value"
    assert [kind in MINOR for kind in first] == [False] * (len(first) - 1) + [True]


def test_ties_are_no_findings() -> None:
    """Integers that rounding errors decide are not compared: the largest of sums that are equal."""
    program = PROGRAM.with_(init=[], steps=[["t0 = (x / x.sum(1, keepdim=True)).sum(1)"]], result="t0.argmax()")
    reference, model = Reference(program, CALLS), program.build()
    session = Session(program, model, lambda x: (x.double() / x.double().sum(1, keepdim=True)).float().sum(1).argmin())
    assert [compare(reference, i, o) for i, o in enumerate(session.run(CALLS))] == [[], [], []]
    wrong = Session(PROGRAM.with_(result="x.argmax()"), PROGRAM.build(), lambda x: x.argmin())
    right = Reference(PROGRAM.with_(result="x.argmax()"), CALLS)
    assert next(d.kind for d in compare(right, 0, wrong.call(*CALLS[0]))) == "value"


def _faulty(fault: Callable[..., Any]) -> Callable[..., Any]:
    """An `optimize` that returns a module with a fault."""

    def optimize(model: nn.Module, example_inputs: Any, verify: bool = True) -> Any:
        return lambda *inputs: fault(model, *inputs)

    return optimize


def test_a_fault_of_optimize_is_found_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    program = PROGRAM.with_(result="t1")
    monkeypatch.setattr(fastgraph, "optimize", _faulty(lambda model, x: model(x)))
    assert check(program, ("optimize",)) == Report(1, stages=["optimize"])
    monkeypatch.setattr(fastgraph, "optimize", _faulty(lambda model, x: model(x) + 1e-3))
    (finding,) = check(program, ("optimize",)).findings
    assert (finding.stage, finding.kind) == ("optimize", "value")
    assert finding.source == program.source
    small = shrink(program, finding)
    assert small.steps == []
    assert small.init == []


def test_what_optimize_does_to_the_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def optimize(model: nn.Module, example_inputs: Any, verify: bool = True) -> Any:
        if verify:
            model(*example_inputs)
        return model

    monkeypatch.setattr(fastgraph, "optimize", optimize)
    (finding,) = check(PROGRAM, ("optimize",)).findings
    assert finding.kind == "optimize changes the model or the inputs"
    assert finding.detail == "count"


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (ValueError("model: needs eval mode"), True),
        (RuntimeError("x: needs a tensor of 2 dimensions"), True),
        (RuntimeError("verify: output 0 differs from eager's"), False),
        (KeyError("model: no"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_refusals_are_ours(monkeypatch: pytest.MonkeyPatch, error: Exception, refused: bool) -> None:
    def optimize(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(fastgraph, "optimize", optimize)
    report = check(PROGRAM, ("optimize",))
    assert (list(report.refused) == ["optimize"]) is refused
    assert bool(report.findings) is not refused


def _work(connection: Connection, stages: Sequence[str], sparse: bool) -> None:
    """A worker that dies of seed 1 and hangs at seed 2."""
    while (seed := connection.recv()) is not None:
        if seed == 1:
            os._exit(3)
        if seed == 2:
            time.sleep(600)
        connection.send(Report(seed, stages=list(stages)))


def test_crashes_and_hangs_are_findings(tmp_path: Path) -> None:
    summary = runner.run(range(5), jobs=2, work=_work, hangs=1.0, log=tmp_path / "log.jsonl")
    assert summary.modules == 5
    assert {(f.seed, f.kind) for f in summary.findings} == {(1, "crash"), (2, "hang")}
    assert all("class Model" in f.source for f in summary.findings)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_shares_and_budget() -> None:
    """The costly stages come on the same seeds each time; no time, no modules."""
    counts = {stage: sum(stage in stages_of(seed, STAGES) for seed in range(COUNT)) for stage in STAGES}
    assert counts["optimize"] == COUNT
    assert all(COUNT // 10 <= count < COUNT for stage, count in counts.items() if stage != "optimize")
    assert stages_of(0, ("save",)) == ("save",)
    assert runner.run(range(5), jobs=1, work=_work, budget=0.0).modules == 0


def test_summary_groups_findings() -> None:
    findings = [Finding(seed, "save", "load raises KeyError", f"no such {seed % 2}") for seed in range(4)]
    summary = runner.Summary()
    summary.add(Report(9, [*findings, Finding(9, "optimize", "strides", "output 0")], {"save": "module: no"}))
    lines = str(summary).splitlines()
    assert "4 findings" in lines[0]
    assert any("load raises KeyError: no such N" in line and line.split()[0] == "4" for line in lines)
    assert any("strides" in line for line in lines)
    assert any("module: no" in line and "seeds 9" in line for line in lines)


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(fastgraph, "optimize", _faulty(lambda model, *inputs: "nothing"))
    assert main(["--seed", "11", "--stages", "optimize"]) == 1
    printed = capsys.readouterr().out
    assert fuzz.generate(11).source in printed
    assert "optimize: structure" in printed
    monkeypatch.setattr(fastgraph, "optimize", _faulty(lambda model, *inputs: model(*inputs)))
    assert main(["--seed", "11", "--stages", "optimize"]) == 0
    with pytest.raises(SystemExit):
        main(["--stages", "magic"])
    said = capsys.readouterr().err
    assert all(stage in said for stage in STAGES)
