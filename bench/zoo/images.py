"""Networks for small images; the large ones are torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def lenet(activation: type[nn.Module] = nn.Tanh, pool: type[nn.Module] = nn.AvgPool2d) -> nn.Module:
    """LeNet-5 (LeCun 1998): ``[B, 1, 32, 32]`` to ``[B, 10]``."""
    convs = [nn.Conv2d(1, 6, 5), activation(), pool(2), nn.Conv2d(6, 16, 5), activation(), pool(2)]
    linears = [nn.Linear(400, 120), activation(), nn.Linear(120, 84), activation(), nn.Linear(84, 10)]
    return nn.Sequential(*convs, nn.Flatten(), *linears)


class MnistExample(nn.Module):
    """Of PyTorch's examples: two convolutions, one pool, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 1, 28, 28]`` to ``[B, 10]``."""
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        x = F.relu(self.fc1(torch.flatten(self.dropout1(x), 1)))
        return F.log_softmax(self.fc2(self.dropout2(x)), dim=1)


def atari_dqn() -> nn.Module:
    """Of Mnih et al. 2015: ``[B, 4, 84, 84]`` to the values of six actions."""
    convs = [nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 6))


def cifar_vgg() -> nn.Module:
    """VGG with batch-norm for ``[B, 3, 32, 32]``."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 128, 256, 512):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10))


class UNet(nn.Module):
    """Of Ronneberger et al. 2015 with batch-norm: each level down doubles the width, each level up concatenates."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        self.down = nn.ModuleList(_two_convs(i, o) for i, o in zip((3, *widths), widths, strict=False))
        narrower = list(reversed(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in pairwise(narrower))
        self.join = nn.ModuleList(_two_convs(2 * width, width) for width in narrower[1:])
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to ``[B, 1, H, W]``, H and W multiples of 8."""
        skipped = []
        for level, convs in enumerate(self.down):
            x = convs(F.max_pool2d(x, 2) if level else x)
            skipped.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skipped[:-1]), strict=True):
            x = join(torch.cat([skip, up(x)], dim=1))
        result: Tensor = self.head(x)
        return result


def _two_convs(inputs: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
