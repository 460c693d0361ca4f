"""Small networks as people write them, most of which is not in fused kernels: none may be below eager.

Seeded, as PyTorch initialises them, on normally distributed input: only times are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgraph.bench.cases import Built, Case


class MnistExample(nn.Module):
    """Of PyTorch's examples: two convolutions, one pool, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 1, 28, 28]`` to ``[B, 10]``."""
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        return F.log_softmax(self.fc2(F.relu(self.fc1(torch.flatten(x, 1)))), dim=1)


class SacActor(nn.Module):
    """One body, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(17, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.mean, self.log_std = nn.Linear(256, 6), nn.Linear(256, 6)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 17]`` to ``[B, 12]``."""
        hidden = self.body(x)
        return torch.cat([torch.tanh(self.mean(hidden)), self.log_std(hidden).clamp(-20, 2)], dim=1)


class TabularResNet(nn.Module):
    """Normalised blocks around which the values pass."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(nn.BatchNorm1d(128), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128)) for _ in range(4)
        ]
        self.first, self.blocks = nn.Linear(32, 128), nn.ModuleList(blocks)
        self.head = nn.Sequential(nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 32]`` to ``[B, 1]``."""
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        result: Tensor = self.head(x)
        return result


class Recurrent(nn.Module):
    """The last step of a recurrent layer, and a linear one."""

    def __init__(self, kind: type[nn.GRU | nn.LSTM]) -> None:
        super().__init__()
        self.layer, self.head = kind(32, 64, batch_first=True), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, 32]`` to ``[B, 8]``."""
        result: Tensor = self.head(self.layer(x)[0][:, -1])
        return result


class Segmenter(nn.Module):
    """Convolutions along a sequence, a linear layer at each place."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Conv1d(64, 128, 3, padding=1), nn.ReLU(), nn.Conv1d(128, 128, 3, padding=1), nn.ReLU())
        self.convs, self.head = nn.Sequential(*layers), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, 64]`` to ``[B, T, 4]``."""
        result: Tensor = self.head(self.convs(x.transpose(1, 2)).transpose(1, 2))
        return result


def _ppo_actor() -> nn.Module:
    return nn.Sequential(nn.Linear(24, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))


def _dlrm_bottom() -> nn.Module:
    return nn.Sequential(nn.Linear(13, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU())


def _lenet(activation: type[nn.Module], pool: type[nn.Module]) -> nn.Module:
    convs = [nn.Conv2d(1, 6, 5, padding=2), activation(), pool(2), nn.Conv2d(6, 16, 5), activation(), pool(2)]
    linears = [nn.Linear(400, 120), activation(), nn.Linear(120, 84), activation(), nn.Linear(84, 10)]
    return nn.Sequential(*convs, nn.Flatten(), *linears)


def _cifar_vgg() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 128, 256, 512):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10))


def _atari_dqn() -> nn.Module:
    convs = [nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 6))


# Name: the network, and the shape of one sample.
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "PPO actor": (_ppo_actor, (24,)),
    "DLRM bottom": (_dlrm_bottom, (13,)),
    "SAC actor": (SacActor, (17,)),
    "tabular ResNet": (TabularResNet, (32,)),
    "LeNet, ReLU and max-pool": (partial(_lenet, nn.ReLU, nn.MaxPool2d), (1, 28, 28)),
    "LeNet-5": (partial(_lenet, nn.Tanh, nn.AvgPool2d), (1, 28, 28)),
    "MNIST example": (MnistExample, (1, 28, 28)),
    "CIFAR VGG": (_cifar_vgg, (3, 32, 32)),
    "Atari DQN": (_atari_dqn, (4, 84, 84)),
    "GRU": (partial(Recurrent, nn.GRU), (20, 32)),
    "LSTM": (partial(Recurrent, nn.LSTM), (20, 32)),
    "segmenter": (Segmenter, (50, 64)),
    "transformer layer": (partial(nn.TransformerEncoderLayer, 256, 4, 1024, batch_first=True), (32, 256)),
}


def small_nets(batches: Sequence[int]) -> list[Case]:
    """Each of ``NETS`` at each batch size."""
    return [Case(name, batch, partial(build_net, name)) for name in NETS for batch in batches]


def build_net(name: str, batch: int) -> Built:
    """The network and a batch for it."""
    make, shape = NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Built(make().eval(), torch.randn(batch, *shape))
