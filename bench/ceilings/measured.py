"""What the machine can do at most, measured by the native library in every round beside the cases."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from fastgraph.bench.backends import Setting
from fastgraph.bench.ceilings.caches import read_sizes
from fastgraph.bench.process.timer import block
from fastgraph.bench.text import duration, rate
from fastgraph.kernels import native


@dataclass(frozen=True)
class Ceiling:
    """A ceiling: the unit of its values, and what it is called where units are written out."""

    unit: str
    about: str

    def text(self, value: float, about: bool = False) -> str:
        """A value in the unit that fits: "90 GFLOP/s", "1.0 µs"; with what it is, where asked for."""
        if self.unit == "s":
            return f"{self.about} {duration(value)}" if about else duration(value)
        return f"{rate(value)}{self.unit}{f' {self.about}' if about else ''}"


CEILINGS = {
    "fma": Ceiling("FLOP/s", "fp32 multiply-add"),
    "bf16": Ceiling("FLOP/s", "bf16 dot product"),
    "L2": Ceiling("B/s", "from L2"),
    "L3": Ceiling("B/s", "from L3"),
    "memory": Ceiling("B/s", "from memory"),
    "weights": Ceiling("B/s", "from weights"),
    "launch": Ceiling("s", "a call"),
}
"""By name; ``MeasuredCeilings`` says what each is."""
COMPUTE = {"fp32": "fma", "bf16": "bf16"}
"""The ceiling of the products in a dtype of ``bench.backends.DTYPES``."""


@dataclass(frozen=True)
class CeilingBlocks:
    """Which ceilings to measure in every round, and for how many seconds each."""

    names: tuple[str, ...]
    seconds: float = 0.02


def ceilings_of(setting: Setting) -> CeilingBlocks:
    """What limits a case of this setting; the dot product in bf16 limits nothing else."""
    return CeilingBlocks((*dict.fromkeys(["fma", COMPUTE[setting.dtype]]), "L2", "L3", "memory", "launch"))


def compute_ceiling(measured: Collection[str]) -> str:
    """Which of these ceilings is that of a case's products: bf16's, where it was measured, is measured for them."""
    return "bf16" if "bf16" in measured else "fma"


class MeasuredCeilings:
    """The ceilings on ``threads`` threads; lives in a worker process of its own.

    "fma": fp32 multiply-adds from registers. "bf16": the bf16 dot product. "L2", "L3", "memory": reading with buffers
    that fit there. "weights": reading as many bytes as a model's weights have, divided among the threads, wherever the
    machine keeps them. "launch": seconds of one call of the smallest operator. One that this machine does not have is
    left out.
    """

    def __init__(self, threads: int) -> None:
        module = native.kernels()
        if module is None:
            raise RuntimeError("there are no compiled kernels here, which measure the ceilings")
        self._native, self._threads = module.Ceiling(threads), threads
        self._bytes = read_sizes(threads)
        one = torch.zeros(1)
        self._smallest = lambda: torch.relu(one)

    def block(self, names: tuple[str, ...], seconds: float, weight_bytes: int = 0) -> dict[str, float]:
        """Values in the units of ``CEILINGS`` by name, about ``seconds`` for each."""
        values = {name: self._value(name, seconds, weight_bytes) for name in names}
        return {name: value for name, value in values.items() if value > 0}

    def _value(self, name: str, seconds: float, weight_bytes: int) -> float:
        if name == "fma":
            return self._native.fma_f32(seconds)
        if name == "bf16":
            return self._native.dot_bf16(seconds)
        if name == "launch":
            return float(np.median(block(self._smallest, max(1, round(seconds / 1e-5)))))
        size = -(-weight_bytes // self._threads) if name == "weights" else self._bytes[name]
        return self._native.read(size, seconds)
