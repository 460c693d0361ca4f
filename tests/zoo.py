"""Networks that tests take from the bench's zoo and from torchvision, on images so small that a test takes seconds."""

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

LEAST_SHARE = dict.fromkeys([*ZOO, *FAMILIES], 0.995) | {
    "vit_b_16": 0.99,
    "text_cnn": 0.95,
    "encoder": 0.9,
    "swin_t": 0.9,
    "dlrm": 0.6,
}
"""Which share of its FLOPs is in fused kernels at least, 0..1, for each network of the zoo and of the families."""

NETWORKS = list(dict.fromkeys([*ZOO, *FAMILIES]))


def network(name: str, batch: int) -> tuple[nn.Module, torch.Tensor]:
    """A network of `NETWORKS` in eval mode, and a batch for it; torchvision's see small images."""
    entry = ZOO.get(name)
    if entry is not None and entry.package is None:
        return informative(entry.make, entry.example(4)), entry.example(batch)
    size = FAMILIES.get(name, 32)
    example = photos(3, size, size)
    return informative(partial(_make, name, size), example(4)), example(batch)


def _make(name: str, size: int) -> nn.Module:
    """Of torchvision; fewer layers where each kind of them comes many times and torch.export takes long."""
    from torchvision import models

    if name == "swin_t":
        return models.SwinTransformer([4, 4], 96, [2, 1], [3, 6], [7, 7])
    if name == "densenet121":
        return models.DenseNet(32, (2, 2, 2, 2), 64)
    if name == "resnext50_32x4d":
        return models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4)
    return make_torchvision(name, **({"image_size": size} if name == "vit_b_16" else {}))
