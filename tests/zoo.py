"""Networks that tests take from the bench's zoo and from torchvision, on images so small that a test takes seconds."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from fastgraph.bench.zoo.entry import photos
from fastgraph.bench.zoo.libraries import make_torchvision
from fastgraph.bench.zoo.table import ZOO
from fastgraph.bench.zoo.weights import informative

FAMILIES = {
    "alexnet": 64,
    "vgg11_bn": 32,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "squeezenet1_1": 64,
    "densenet121": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "mnasnet0_5": 64,
    "shufflenet_v2_x0_5": 64,
    "efficientnet_b0": 64,
    "regnet_y_400mf": 64,
    "convnext_tiny": 64,
    "vit_b_16": 64,
    "swin_t": 64,
}
"""A small member of each of torchvision's families of classifiers, and the sides of its images."""

LEAST_SHARE = (
    dict.fromkeys([*ZOO, *FAMILIES], 0.0)
    | {
        # "resnet50": 0.99,
    }
)
"""Which share of its FLOPs is in fused kernels at least, 0..1, for each network of the zoo and of the families."""

NETWORKS = list(LEAST_SHARE)


def network(name: str, batch: int) -> tuple[nn.Module, torch.Tensor]:
    """A network of `NETWORKS` in eval mode, and a batch for it; torchvision's see small images."""
    entry = ZOO.get(name)
    if entry is not None and entry.package is None:
        return informative(entry.make, entry.example(4)), entry.example(batch)
    size = FAMILIES.get(name, 32)
    example = photos(3, size, size)
    return informative(_make(name, size), example(4)), example(batch)


def _make(name: str, size: int) -> Callable[[], nn.Module]:
    """Of torchvision, for images of this size where it has to know."""
    return partial(make_torchvision, name, **({"image_size": size} if name.startswith("vit") else {}))
