"""What is not a call's median: the tail beside a busy process, the cost of ``optimize``, the packed weights' size."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from fastgraph.bench.backends import OURS, Setting
from fastgraph.bench.cases import Case, deep, net
from fastgraph.bench.crew import Worker, WorkerFailed
from fastgraph.bench.measure import Plan, Seconds
from fastgraph.bench.nursery import Nursery
from fastgraph.bench.session import Session, session
from fastgraph.bench.text import duration
from fastgraph.capture import capture
from fastgraph.kernels.mlp import op as mlp
from fastgraph.module import OptimizedModule

TIMES = 9
TAIL = ((16, "deep", 20_000, 3.0), (1, "net", 2_000, 2.5))  # batch, model, calls, how many times the idle p99
OPTIMIZE_S, PACKING_BYTES_PER_S, PACKED_RATIO = 5e-3, 1e9, 1.1


@dataclass(frozen=True)
class Tail:
    """Percentiles of a call in seconds, on an idle machine and beside one process that never rests."""

    case: str
    calls: int
    idle_p50_s: float
    idle_p99_s: float
    busy_p50_s: float
    busy_p99_s: float

    @property
    def ratio(self) -> float:
        """p99 beside the busy process over the idle one."""
        return self.busy_p99_s / self.idle_p99_s


@dataclass(frozen=True)
class OptimizeCost:
    """Of DeepLearningModel: milliseconds of ``optimize`` without the capture, up to the first result; bytes of weights
    packed a second; bytes of packed weights over the weights' own."""

    optimize_s: float
    packing_bytes_per_s: float
    packed_ratio: float


def tail(running: Session, case: Case, calls: int) -> Tail:
    """Times ``calls`` calls of fastgraph twice. The case must have been run in the session before."""
    idle = np.percentile(_block(running, calls), [50, 99])
    with busy_process():
        busy = np.percentile(_block(running, calls), [50, 99])
    return Tail(case.name, calls, float(idle[0]), float(idle[1]), float(busy[0]), float(busy[1]))


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that computes without rest while the context is open."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(0.2)  # it has begun
    try:
        yield
    finally:
        process.kill()
        process.wait()


class OptimizeTimer:
    """Measures ``OptimizeCost``; lives in a worker process of its own."""

    def measure(self, case: Case) -> OptimizeCost:
        """Medians of several times."""
        built = case.build()
        x = built.x[:1]
        optimize_s = []
        for _ in range(TIMES):
            captured = capture(built.model, (x,))
            start = time.perf_counter()
            with torch.no_grad():
                OptimizedModule(built.model, [captured], dtype=None, engine="direct")(x)
            optimize_s.append(time.perf_counter() - start)
            # Packed weights are cached by tensor: another model's parameters for the next time.
            built.model.load_state_dict({k: v.clone() for k, v in built.model.state_dict().items()})
        return OptimizeCost(median(optimize_s), *_packing(list(built.model.parameters())))


def _packing(parameters: list) -> tuple[float, float]:
    """Bytes packed a second, and packed bytes over the weights'."""
    tensors = [*parameters[0::2], *parameters[1::2]]  # weights, then biases
    activations = ("relu",) * (len(parameters) // 2 - 1) + ("softmax",)
    size = sum(tensor.numel() * 4 for tensor in tensors)
    seconds = []
    for _ in range(TIMES):
        start = time.perf_counter()
        packed = mlp.pack(tensors, activations)
        seconds.append(time.perf_counter() - start)
    return size / median(seconds), packed.packed_bytes / size


def _block(running: Session, calls: int) -> Seconds:
    found = running.call(OURS, "block", calls)
    assert isinstance(found, np.ndarray)
    return found


def _tails(setting: Setting, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tails beside a busy process."""
    for batch, model, calls, allowed in TAIL:
        (case,) = deep([batch]) if model == "deep" else net([batch])
        with session([OURS], setting) as running:
            row = running.run(case, plan).rows[0]
            if row.timing is None:
                yield f"tail, {case.name}: {row.status}: {row.reason}", {"tail": case.name, "reason": row.reason}
                continue
            found = tail(running, case, calls)
        yield _tail_line(found, allowed), {"tail": asdict(found), "allowed": allowed}


def _tail_line(found: Tail, allowed: float) -> str:
    """The tail in one line."""
    idle, busy = ((found.idle_p50_s, found.idle_p99_s), (found.busy_p50_s, found.busy_p99_s))
    return (
        f"tail, {found.case}, {found.calls:,} calls: idle p50 {duration(idle[0])}, p99 {duration(idle[1])}; beside a "
        f"busy process p50 {duration(busy[0])}, p99 {duration(busy[1])}: {found.ratio:.1f} times the idle p99 "
        f"({allowed}){_short(found.ratio > allowed)}"
    )


def _optimize(setting: Setting, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """What ``optimize`` costs without the capture."""
    nursery = Nursery(setting.threads)
    worker = Worker(nursery, OptimizeTimer)
    try:
        (case,) = deep([1])
        cost: OptimizeCost = worker.ask("measure", case, limit_s=120)
    except WorkerFailed as failure:
        yield f"optimize: {failure}", {"optimize": None, "reason": str(failure)}
        return
    finally:
        worker.close()
        nursery.close()
    yield _cost_line(cost), {"optimize": asdict(cost)}


def _cost_line(cost: OptimizeCost) -> str:
    """The cost of ``optimize`` in one line."""
    speed = cost.packing_bytes_per_s
    return (
        f"optimize without the capture: {duration(cost.optimize_s)} (5 ms){_short(cost.optimize_s > OPTIMIZE_S)}; "
        f"packing {speed / 1e9:.2f} GB/s (1.00){_short(speed < PACKING_BYTES_PER_S)}; "
        f"packed over own bytes {cost.packed_ratio:.3f} (1.1){_short(cost.packed_ratio > PACKED_RATIO)}"
    )


def _short(is_short: bool) -> str:
    """What stands behind a figure that is under its target."""
    return " short" if is_short else ""


EXTRAS: dict[str, Callable[[Setting, Plan], Iterator[tuple[str, dict[str, Any]]]]] = {
    "tail": _tails,
    "optimize": _optimize,
}
"""By the name that ``--cases`` takes: lines as they are measured, each with what goes into ``perf.json``."""
