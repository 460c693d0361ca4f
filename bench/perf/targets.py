"""The cases of ``python -m bench perf`` and what the kernels are to reach in them."""

from __future__ import annotations

from collections.abc import Sequence

from fastgraph.bench import cases
from fastgraph.bench.perf import conv, gemm, zoo
from fastgraph.bench.perf.small_nets import small_nets
from fastgraph.bench.perf.target import BF16_PEERS, CHEAP_PEERS, EAGER_ALONE, Target

DEEP_RATIO = {1: 1.6, 2: 1.3, 4: 1.3, 8: 1.3, 16: 1.2, 32: 1.2, 64: 1.2, 128: 1.0, 1024: 1.0, 8192: 1.05}
NET_RATIO = {1: 2.2, 4: 2.2, 16: 2.2}
OTHER_RATIO = 1.1
CHAIN_BATCH, CONV_BATCH = 64, 4
CHAINS: tuple[tuple[tuple[int, ...], str], ...] = (
    ((429, 255), "relu"),
    ((784, 300, 10), "relu"),
    ((100, 333, 77, 5), "tanh"),
    ((429, 1023, 511, 255, 1), "gelu"),
    ((429, 1023, 511, 255, 1), "tanh"),
    ((65, 129, 257, 131, 67, 3), "relu"),
    ((200, 190, 180, 170, 160, 150, 7), "gelu"),
)
CONVS = ((1, 5, 2), (20, 5, 2), (50, 5, 2))  # channels, kernel, pool
TILE = 16
NETS_BATCHES, NETS_RATIO = (1, 64), 1.0  # of eager, which nothing may be below


def targets(dtype: str) -> list[Target]:
    """All targets in ``dtype``, "fp32" or "bf16"."""
    models = [*_deep(dtype), *_net(dtype)]
    return [*models, *_others(), *_nets()] if dtype == "fp32" else models


def choose(wanted: Sequence[str], dtype: str, quick: bool = False) -> list[Target]:
    """Those of ``wanted``, each a group ("deep") or a group and a batch ("deep:16"); all when it is empty.

    The grids of ``gemm`` and ``conv`` and the ``zoo``, which take minutes, have to be asked for; ``quick`` makes the
    grids small.
    """
    known = targets(dtype)
    if not wanted:
        return known
    known += _asked_for(quick) if dtype == "fp32" else []
    return [t for t in known if t.group in wanted or f"{t.group}:{t.case.batch}" in wanted]


def names() -> list[str]:
    """What ``choose`` knows."""
    known = [*targets("fp32"), *_asked_for()]
    return list(dict.fromkeys([t.group for t in known] + [f"{t.group}:{t.case.batch}" for t in known]))


def _asked_for(quick: bool = False) -> list[Target]:
    return [*gemm.grid(quick), *conv.grid(quick), *zoo.nets()]


def _deep(dtype: str) -> list[Target]:
    chosen = []
    for case in cases.deep(tuple(DEEP_RATIO)):
        ceiling = "weights" if case.batch == 1 else "fma"
        share = {1: 0.8, 128: 0.92, 1024: 0.92, 8192: 0.92}.get(case.batch)
        fp32_ratio = 1.5 if case.batch == 1 else 1.7 if case.batch >= 128 else None
        chosen.append(
            Target("deep", case, DEEP_RATIO[case.batch], ceiling, share)
            if dtype == "fp32"
            else Target("deep", case, 1.0, ceiling, None, fp32_ratio, peers=BF16_PEERS)
        )
    return chosen


def _net(dtype: str) -> list[Target]:
    return [
        Target("net", case, NET_RATIO[case.batch], "fma", 0.8)
        if dtype == "fp32"
        else Target("net", case, 1.0, "fma", None, 1.7, peers=BF16_PEERS)
        for case in cases.net(tuple(NET_RATIO))
    ]


def _others() -> list[Target]:
    chosen = []
    for sizes, activation in CHAINS:
        (case,) = cases.chain(sizes, activation, [CHAIN_BATCH])
        whole = tuple(-(-size // TILE) * TILE for size in sizes)
        (whole_tiles,) = cases.chain(whole, activation, [CHAIN_BATCH])
        chosen.append(Target("chains", case, OTHER_RATIO, "fma", whole_tiles=whole_tiles, peers=CHEAP_PEERS))
    for channels, kernel_size, pool in CONVS:
        (case,) = cases.conv(channels, kernel_size, pool, [CONV_BATCH])
        (whole_tiles,) = cases.conv(-(-channels // TILE) * TILE, kernel_size, pool, [CONV_BATCH])
        chosen.append(Target("convs", case, OTHER_RATIO, "fma", whole_tiles=whole_tiles, peers=CHEAP_PEERS))
    return chosen


def _nets() -> list[Target]:
    return [Target("nets", case, NETS_RATIO, "fma", peers=EAGER_ALONE) for case in small_nets(NETS_BATCHES)]
