"""What is not a call's median: the tail beside a busy process, the cost of ``optimize``, the packed weights' size."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from bench.backends import OURS
from bench.cases import Case
from bench.measure import Seconds
from bench.session import Session
from fastgraph.capture import capture
from fastgraph.module import OptimizedModule
from kernels.mlp import op as mlp

TIMES = 9


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


def tail(session: Session, case: Case, calls: int) -> Tail:
    """Times ``calls`` calls of fastgraph twice. The case must have been run in the session before."""
    idle = np.percentile(_block(session, calls), [50, 99])
    with busy_process():
        busy = np.percentile(_block(session, calls), [50, 99])
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
                OptimizedModule(captured, dtype=None, engine="direct")(x)
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


def _block(session: Session, calls: int) -> Seconds:
    found = session.call(OURS, "block", calls)
    assert isinstance(found, np.ndarray)
    return found
