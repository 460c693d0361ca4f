"""The sizes of the processor's caches, as the system tells them."""

from __future__ import annotations

from pathlib import Path

MIB = 2**20
L2_BYTES, L3_BYTES = MIB, 32 * MIB  # where the system does not tell


def cache_bytes(level: int, otherwise: int, root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Size of the cache at ``level`` that holds data; ``otherwise`` where the system does not tell."""
    for index in sorted(root.glob("index*")):
        try:
            of_level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if int(of_level) == level and kind != "Instruction":
            return int(size.rstrip("KM")) * (MIB if size.endswith("M") else 1024)
    return otherwise


def capacities(threads: int) -> dict[str, int]:
    """Bytes that the L2 of ``threads`` cores and the L3 hold."""
    return {"L2": threads * cache_bytes(2, L2_BYTES), "L3": cache_bytes(3, L3_BYTES)}


def read_sizes(threads: int) -> dict[str, int]:
    """Bytes a thread reads so that they come from L2, L3 or memory."""
    l2, l3 = cache_bytes(2, L2_BYTES), cache_bytes(3, L3_BYTES)
    return {
        "L2": l2 // 2,
        "L3": min(4 * l2, max(2 * l2, l3 // (2 * threads))),
        "memory": max(64 * MIB, 4 * l3 // threads),
    }
