"""What the bench's tests share: a small case, backends that misbehave, and a report with known figures."""

import os
import signal
import time

import torch
from torch import Tensor, nn

from fastgraph.bench.backends import Backend, Setting
from fastgraph.bench.cases import Built, Case
from fastgraph.bench.ceilings.limit import Limit
from fastgraph.bench.ceilings.work import Work
from fastgraph.bench.plan import Plan
from fastgraph.bench.ratio import speed_ratio
from fastgraph.bench.report.report import Report
from fastgraph.bench.results import CaseReport, Row
from fastgraph.bench.timing import Timing, Usage

FAST = Plan(rounds=3, block_s=0.001, warm_up_s=0.01, case_s=1.0)


def build_small(batch: int) -> Built:
    """A small classifier; its "digits" are 10 rows, which it classifies right by definition."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(20)
        model = nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=1)).eval()
        rows = torch.randn(10, 6)
        labels = model(rows).argmax(dim=1)
    return Built(model, rows[:batch], (rows, labels))


def small_case(batch: int = 4) -> Case:
    """The small classifier on ``batch`` rows."""
    return Case("small", batch, build_small)


class Right(Backend):
    """Gives what the model gives; a tensor made in inference mode would make torch.compile compile anew."""

    name = "right"

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        self.model, self.calls = model, 0

    def run(self, x: Tensor) -> Tensor:
        assert not x.is_inference(), "an inference tensor"
        self.calls += 1
        return self.output(self.model(x))

    def output(self, y: Tensor) -> Tensor:
        return y

    def ran_on(self) -> str:
        return "somewhere"


class Baseline(Right):
    """Another right one, under the baseline's name."""

    name = "eager"


class Wrong(Right):
    """Off by a quarter."""

    name = "wrong"

    def output(self, y: Tensor) -> Tensor:
        return y + 0.25


class Raising(Right):
    """Raises in the call."""

    name = "raising"

    def run(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such library\nand more")


class Missing(Right):
    """Its library is not installed."""

    name = "missing"

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        raise ModuleNotFoundError("No module named 'peer'")


class Crashing(Right):
    """Its process ends while it is timed, as a library with a bad pointer does."""

    name = "crashing"

    def run(self, x: Tensor) -> Tensor:
        if self.calls > 30:
            print("a last word", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().run(x)


class Tired(Right):
    """Raises after some calls."""

    name = "tired"

    def run(self, x: Tensor) -> Tensor:
        if self.calls > 30:
            raise RuntimeError("out of breath")
        return super().run(x)


class Hanging(Right):
    """Never becomes ready."""

    name = "hanging"

    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        time.sleep(1000)


class Slow(Right):
    """Takes 20 ms more a call."""

    name = "slow"

    def output(self, y: Tensor) -> Tensor:
        time.sleep(0.02)
        return y


class Paced(Right):
    """Takes 5 ms, most of it asleep: other processes hardly change that."""

    name = "fastgraph"
    pause_s = 5e-3

    def output(self, y: Tensor) -> Tensor:
        time.sleep(self.pause_s)
        return y


class PacedSlower(Paced):
    """The same, a fifth slower."""

    pause_s = 6e-3


class NoTensor(Right):
    """Gives an array."""

    name = "no tensor"

    def run(self, x: Tensor) -> Tensor:
        return self.model(x).numpy()


class Refusing(Right):
    """Cannot do it at all."""

    name = "refusing"

    def refusal(self, setting: Setting) -> str | None:
        return f"has no {setting.dtype}"


def timing(median_s: float, spread: float = 0.01, rounds: int = 9, calls: int = 1234) -> Timing:
    """A timing whose rounds lie evenly within ``spread`` around the median."""
    steps = [1 + spread * (2 * i / (rounds - 1) - 1) for i in range(rounds)]
    medians = tuple(median_s * step for step in steps)
    return Timing(calls, rounds, median_s, median_s, median_s * spread, median_s * 1.2, None, medians)


def case_report(
    batch: int = 16, ours_s: float = 2e-5, device: str = "cpu", usage: Usage | None = None, spread: float = 0.04
) -> CaseReport:
    """A case with a fast, a wrong, an absent and a noisy backend; eager takes 50 us."""
    limit = Limit("memory", "L3", 1.4e-5, 0.7)
    eager, compiled, ours = timing(5e-5), timing(6e-5, spread=0.3), timing(ours_s, spread)
    rows = (
        Row("eager", "ok", None, "cpu", 1e-5, 2e-3, 1e-7, 1e-8, 0.9859, True, 2_600_000,
            eager, batch / 5e-5, *[speed_ratio(eager, eager)] * 2, usage),
        Row("onnxruntime", "wrong", "its error is large", "CPU", 0.1, 0.1, float("nan")),
        Row("OpenVINO", "failed", "ImportError: [no] such <thing> | here"),
        Row("torch.compile", "ok", None, "cpu, inductor", 4.0, 5.0, 1e-7, 1e-8, 0.98, False, 10**8,
            compiled, batch / 6e-5, *[speed_ratio(compiled, eager)] * 2),
        Row("fastgraph", "ok", None, "cpu, mlp (avx2)", 0.2, 1e-3, 9e-8, 1e-8, 0.9859, True, 24_000_000,
            ours, batch / ours_s, *[speed_ratio(ours, eager)] * 2, Usage(3e-5, 0.02, 0.1), limit, 0.97),
    )  # fmt: skip
    ceilings = {"fma": (9e10, 8.8e10, 9.1e10), "L2": (8e10,) * 3, "L3": (7e10,) * 3, "memory": (9e9,) * 3}
    work = Work(flops=1_070_000 * batch, weight_bytes=2_140_000, input_bytes=3136 * batch, output_bytes=40 * batch)
    return CaseReport(
        f"DeepLearningModel, batch {batch}", "DeepLearningModel", batch, (batch, 784),
        Setting(threads=2, device=device), 1e-7, 3e-7, work, rows, ceilings | {"launch": (1e-6,) * 3},
    )  # fmt: skip


MACHINE = {
    "cpu": "Some <CPU>",
    "cores": 2,
    "l2_bytes": 2**20,
    "l3_bytes": None,
    "isa": "avx2",
    "gpu": None,
    "system": "Linux",
    "python": "3.11.7",
    "versions": {"torch": "2.14.1"},
    "commit": "abc1234",
}


def report(*cases: CaseReport) -> Report:
    """A report of these cases, by default three batches of one model."""
    made = cases or tuple(case_report(batch, 2e-5 * (1 + batch / 16)) for batch in (1, 16, 128))
    return Report("python -m bench --quick", "2026-01-02T03:04:05+00:00", dict(MACHINE), FAST, made)
