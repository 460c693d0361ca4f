"""The ops and both models under pytest-benchmark, eager as the baseline of each group.

    python -m pytest tests/test_benchmarks.py --benchmark-enable --benchmark-group-by=group

Without ``--benchmark-enable`` each runs once and is checked, not timed.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgraph
from fastgraph.bench import cases
from fastgraph.bench.cases import Case

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CASES = [
    *cases.deep([1, 16, 128]),
    *cases.net([1]),
    *cases.chain((784, 512, 10), "relu", [16]),  # the op mlp
    *cases.conv(16, 3, 3, [1]),  # the op conv_pool
]


@pytest.mark.benchmark(warmup=True)  # not done on CPython by itself
@pytest.mark.parametrize("backend", ["eager", "fastgraph"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_speed(benchmark: Any, case: Case, device: str, backend: str) -> None:
    built = case.build()
    model, x = built.model.to(device), built.x.to(device)
    fast = fastgraph.optimize(model, (x,), verify=False) if backend == "fastgraph" else model
    benchmark.group = f"{case.name}, {device}"
    with torch.inference_mode():
        output = benchmark(synchronized(fast, device), x)
        torch.testing.assert_close(output, model(x), rtol=1e-4, atol=1e-5)


def synchronized(model: nn.Module, device: str) -> Callable[[Tensor], Tensor]:
    """The model's call; on CUDA it ends when the device has ended."""
    if device == "cpu":
        return model

    def call(x: Tensor) -> Tensor:
        output = model(x)
        torch.cuda.synchronize()
        return output

    return call
