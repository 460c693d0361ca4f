"""The zoo's networks against the best peer, with what is to be reached in each."""

from __future__ import annotations

from functools import partial

from fastgraph.bench.cases import Case
from fastgraph.bench.perf.target import CHEAP_PEERS, Target
from fastgraph.bench.zoo.cases import build
from fastgraph.bench.zoo.table import ZOO

GROUP = "zoo"
SMALL_CONVS = ("lenet5", "mnist", "dqn", "cifar_vgg")
ROWS = ("tabular", "layer_norm_mlp", "tabular_resnet", "nerf", "siren", "sac_actor", "dlrm")
RATIOS = {
    **dict.fromkeys(("resnet18", "vgg16"), 1.35),
    "unet": 1.2,
    "resnet50": 1.1,
    **dict.fromkeys(("mobilenet_v2", "efficientnet_b0", "encoder"), 1.05),
    **dict.fromkeys(("convnext_tiny", "vit_b_16", "text_cnn", "audio_cnn"), 0.97),
}
ONE = dict.fromkeys(SMALL_CONVS, 1.3) | dict.fromkeys(ROWS, 1.2)
MANY = dict.fromkeys(SMALL_CONVS, 1.1) | dict.fromkeys(ROWS, 1.05)
"""Where batch 1 and larger ones differ."""


def nets() -> list[Target]:
    """Each network at its batch sizes; they are built when they are measured."""
    return [_target(name, batch) for name, entry in ZOO.items() for batch in entry.batches]


def _target(name: str, batch: int) -> Target:
    ratio = RATIOS.get(name) or (ONE if batch == 1 else MANY)[name]
    case = Case(ZOO[name].title, batch, partial(build, "zoo", name, None))
    return Target(GROUP, case, ratio, "fma", peers=CHEAP_PEERS)
