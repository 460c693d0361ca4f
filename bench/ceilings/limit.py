"""How far a backend is from what the machine can do, and what holds it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from fastgraph.bench.ceilings.measured import compute_ceiling
from fastgraph.bench.ceilings.work import Work


@dataclass(frozen=True)
class Limit:
    """The floor of a case and how much of it a backend reaches.

    ``binding`` is the largest of three times that a call cannot be shorter than: "compute" (its operations at the
    ceiling), "memory" (its bytes, from ``level``: the smallest of L2, L3 and memory that holds them) and "launch" (one
    call of the smallest operator). ``floor_s`` is that time, ``share`` floor over measured, 0..1.

    What fits L1 is read in less than a launch takes, so L1 never binds.
    """

    binding: str
    level: str
    floor_s: float
    share: float

    def __str__(self) -> str:
        """The share, and what binds by name: "49% L2", "96% compute"."""
        return f"{self.share:.0%} {self.level if self.binding == 'memory' else self.binding}"


def limit(
    round_medians_s: Sequence[float],
    work: Work,
    ceilings: Mapping[str, Sequence[float]],
    cache_bytes: Mapping[str, int],
) -> Limit | None:
    """The limit of a backend with these medians; None where the ceilings were not measured.

    The machine's speed moves, so floor and share are taken round by round, then their medians.

    Args:
        round_medians_s: the backend's median in each round, seconds.
        work: what one call has to do.
        ceilings: by name (``CEILINGS``), the value in each round.
        cache_bytes: bytes that all threads' L2 and the L3 hold, by "L2" and "L3".
    """
    compute = compute_ceiling(ceilings)
    level = next((name for name in ("L2", "L3") if work.bytes <= cache_bytes[name]), "memory")
    if not all(name in ceilings for name in (compute, level, "launch")):
        return None
    floors = {
        "compute": [work.flops / rate for rate in ceilings[compute]],
        "memory": [work.bytes / rate for rate in ceilings[level]],
        "launch": list(ceilings["launch"]),
    }
    binding = max(floors, key=lambda name: median(floors[name]))
    shares = [floor / seconds for floor, seconds in zip(floors[binding], round_medians_s, strict=False)]
    return Limit(binding, level, median(floors[binding]), median(shares))
