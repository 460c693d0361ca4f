"""What ``optimize`` costs without the capture, how fast weights are packed, and how large they are then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from fastgraph.bench.backends import Setting
from fastgraph.bench.cases import Case, deep
from fastgraph.bench.perf.result import short_mark
from fastgraph.bench.plan import Plan
from fastgraph.bench.process.fork_server import ForkServer
from fastgraph.bench.process.workers import Worker, WorkerFailed
from fastgraph.bench.session import PRELOAD
from fastgraph.bench.text import duration
from fastgraph.capture import capture
from fastgraph.kernels.mlp import op as mlp
from fastgraph.module import OptimizedModule

TIMES = 9
OPTIMIZE_S, PACKING_BYTES_PER_S, PACKED_RATIO = 5e-3, 1e9, 1.1


@dataclass(frozen=True)
class OptimizeCost:
    """Of DeepLearningModel: seconds of ``optimize`` without the capture, up to the first result; bytes of weights
    packed a second; bytes of packed weights over the weights' own."""

    optimize_s: float
    packing_bytes_per_s: float
    packed_ratio: float


def optimize_cost(setting: Setting, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """What ``optimize`` costs without the capture."""
    fork_server = ForkServer(setting.threads, PRELOAD)
    worker = Worker(fork_server, OptimizeTimer)
    try:
        (case,) = deep([1])
        cost: OptimizeCost = worker.ask("measure", case, limit_s=120)
    except WorkerFailed as failure:
        yield f"optimize: {failure}", {"optimize": None, "reason": str(failure)}
        return
    finally:
        worker.close()
        fork_server.close()
    yield _cost_line(cost), {"optimize": asdict(cost)}


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


def _cost_line(cost: OptimizeCost) -> str:
    """The cost of ``optimize`` in one line."""
    speed = cost.packing_bytes_per_s
    return (
        f"optimize without the capture: {duration(cost.optimize_s)} (5 ms){short_mark(cost.optimize_s > OPTIMIZE_S)}; "
        f"packing {speed / 1e9:.2f} GB/s (1.00){short_mark(speed < PACKING_BYTES_PER_S)}; "
        f"packed over own bytes {cost.packed_ratio:.3f} (1.1){short_mark(cost.packed_ratio > PACKED_RATIO)}"
    )
