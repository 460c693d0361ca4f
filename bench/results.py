"""What a session finds out: a row for each backend, and a case with all of its rows."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastgraph.bench.backends import Setting
from fastgraph.bench.ceilings.limit import Limit
from fastgraph.bench.ceilings.work import Work
from fastgraph.bench.ratio import Ratio
from fastgraph.bench.timing import Timing, Usage

BUSY = 0.05  # of the processors' time: others that take more are noted


@dataclass(frozen=True)
class Row:
    """One backend in one case. ``status`` is "ok", "wrong", "failed", "not possible", "left out" or
    "overloaded" (queries came faster than it answers).

    Times are in seconds. ``reason`` says why there is no timing; ``where`` names the device and the provider or
    instruction set that really ran. ``prepare_s`` is None where an earlier batch size's preparation serves.
    ``peak_bytes`` is by how much the process had grown at most while it was timed. ``samples_per_s`` is None where
    calls are not made as fast as possible. ``ratio_to_peer``: to the fastest that is not ours. ``fused``: share of the
    FLOPs, 0..1, in fused kernels of ours, where the backend tells.
    """

    backend: str
    status: str
    reason: str | None = None
    where: str | None = None
    prepare_s: float | None = None
    first_call_s: float | None = None
    max_error: float | None = None
    mean_error: float | None = None
    accuracy: float | None = None
    warmed_up: bool | None = None
    peak_bytes: int | None = None
    timing: Timing | None = None
    samples_per_s: float | None = None
    ratio_to_eager: Ratio | None = None
    ratio_to_peer: Ratio | None = None
    usage: Usage | None = None
    limit: Limit | None = None
    fused: float | None = None


@dataclass(frozen=True)
class CaseReport:
    """All backends on one case, what they were checked against, and the ceilings measured in the same rounds.

    ``others`` is the share of the processors, 0..1, that other processes took during the rounds; None if unknown.
    """

    case: str
    model: str
    batch: int
    input_shape: tuple[int, ...]
    setting: Setting
    eager_error: float
    tolerance: float
    work: Work | None
    rows: tuple[Row, ...]
    ceilings: dict[str, tuple[float, ...]] = field(default_factory=dict)
    others: float | None = None

    @property
    def is_timed(self) -> bool:
        """Whether somebody has a speed."""
        return any(row.timing for row in self.rows)

    def row(self, backend: str) -> Row | None:
        """The backend's row, by its name in the report."""
        return next((row for row in self.rows if row.backend == backend), None)
