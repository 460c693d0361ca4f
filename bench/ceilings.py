"""What the machine can do at most, measured by the native library in every round beside the cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastgraph.bench.measure import block
from fastgraph.kernels import native

UNITS = {
    "fma": "FLOP/s",
    "bf16": "FLOP/s",
    "L2": "B/s",
    "L3": "B/s",
    "memory": "B/s",
    "weights": "B/s",
    "launch": "s",
}
MIB = 2**20


class Ceilings:
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
        """Operations or bytes a second (``UNITS``) by name, about ``seconds`` for each."""
        rates = {name: self._rate(name, seconds, weight_bytes) for name in names}
        return {name: rate for name, rate in rates.items() if rate > 0}

    def _rate(self, name: str, seconds: float, weight_bytes: int) -> float:
        if name == "fma":
            return self._native.fma_f32(seconds)
        if name == "bf16":
            return self._native.dot_bf16(seconds)
        if name == "launch":
            return float(np.median(block(self._smallest, max(1, round(seconds / 1e-5)))))
        size = -(-weight_bytes // self._threads) if name == "weights" else self._bytes[name]
        return self._native.read(size, seconds)


def read_sizes(threads: int) -> dict[str, int]:
    """Bytes a thread reads so that they come from L2, L3 or memory."""
    l2, l3 = cache_bytes(2, MIB), cache_bytes(3, 32 * MIB)
    return {
        "L2": l2 // 2,
        "L3": min(4 * l2, max(2 * l2, l3 // (2 * threads))),
        "memory": max(64 * MIB, 4 * l3 // threads),
    }


def cache_bytes(level: int, otherwise: int, root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Size of the cache at ``level`` that holds data; ``otherwise`` where the system does not tell."""
    for index in sorted(root.glob("index*")):
        try:
            found, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if int(found) == level and kind != "Instruction":
            return int(size.rstrip("KM")) * (MIB if size.endswith("M") else 1024)
    return otherwise
