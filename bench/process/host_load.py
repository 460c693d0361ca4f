"""What other processes take of the processors while a case is timed: figures taken beside busy ones are doubtful."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
IDLE = (3, 4)  # idle and waiting for a disk, among the columns of /proc/stat
COLUMNS = 8  # up to what a hypervisor has stolen; guests are counted among the users


@dataclass(frozen=True)
class Processors:
    """Ticks since the start of the machine, of the processors that this process may use: all, and those not idle."""

    total: int
    busy: int
    own: int

    def others_since(self, before: Processors) -> float | None:
        """Share of the processors' time, 0..1, that went to others since ``before``; None where no time went by."""
        total = self.total - before.total
        others = (self.busy - before.busy) - (self.own - before.own)
        return min(1.0, max(0.0, others / total)) if total > 0 else None


def processors(pids: Iterable[int], proc: Path = PROC) -> Processors | None:
    """The processors now; ``own`` is what ``pids`` have used. None where the system does not tell."""
    try:
        lines = (proc / "stat").read_text().splitlines()
    except OSError:
        return None
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    rows = [[int(text) for text in line.split()[1 : COLUMNS + 1]] for line in lines if line.split()[0] in usable]
    total = sum(map(sum, rows))
    return Processors(total, total - sum(row[i] for row in rows for i in IDLE), sum(_used(p, proc) for p in pids))


def _used(pid: int, proc: Path) -> int:
    """Ticks that a process and its children that have ended used; 0 when it is gone."""
    try:
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(text) for text in fields[11:15])
