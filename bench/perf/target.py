"""What is asked of our kernels in one case."""

from __future__ import annotations

from dataclasses import dataclass

from fastgraph.bench.cases import Case
from fastgraph.bench.plan import Plan

CLIFF = 1.5  # time a FLOP against that of the same layers with sizes of whole tiles
PLAN = Plan(rounds=11, block_s=0.04, warm_up_s=0.5, case_s=3.0)
PEERS = ("eager", "compile", "aotinductor", "onnxruntime", "openvino")
CHEAP_PEERS = ("eager", "onnxruntime", "openvino")  # for shapes of which there are many: compiling each takes minutes
EAGER_ALONE = ("eager",)
BF16_PEERS = ("eager", "openvino")


@dataclass(frozen=True)
class Target:
    """A case and what is asked of it; None where nothing is.

    ``ratio``: the best peer's median over ours. ``ceiling``: which one counts, "weights" (reading them) or "fma", and
    ``share`` of it. ``whole_tiles``: the same with sizes of whole tiles, whose time a FLOP ours may exceed by
    ``CLIFF``. ``operator``: what ATen does in front in our network; its own time does not count against the ceiling.
    ``group`` is how the case is chosen on the command line. ``peers`` (option names) and ``plan`` are for a run that
    names no others.
    """

    group: str
    case: Case
    ratio: float | None
    ceiling: str
    share: float | None = None
    fp32_ratio: float | None = None  # of our own fp32 median over ours
    whole_tiles: Case | None = None
    operator: Case | None = None
    peers: tuple[str, ...] = PEERS
    plan: Plan = PLAN
