"""What is measured: the two reference models on real data, at several batch sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgraph.data import digits, photograph
from fastgraph.models import DeepLearningModel, Net

MODELS = ("deep", "net")
BATCHES = {"deep": (1, 16, 1024), "net": (1, 16)}
QUICK_BATCHES = {"deep": (1,), "net": (1,)}


@dataclass(frozen=True)
class Case:
    """One model on one input.

    ``x`` is ``[B, ...]`` float32. ``held_out`` holds the held-out digits ``[N, 784]`` and their classes ``[N]`` where
    the model is a classifier of digits.
    """

    name: str
    model: nn.Module
    x: Tensor
    held_out: tuple[Tensor, Tensor] | None = None

    @property
    def batch(self) -> int:
        """Samples in one call."""
        return self.x.shape[0]


def cases(model: str, quick: bool = False) -> list[Case]:
    """The cases of ``model``: ``"deep"``, ``"net"`` or ``"all"``; batch 1 alone when ``quick``."""
    batches = QUICK_BATCHES if quick else BATCHES
    made: list[Case] = []
    if model in ("deep", "all"):
        made.extend(deep_cases(batches["deep"]))
    if model in ("net", "all"):
        made.extend(net_cases(batches["net"]))
    return made


def deep_cases(batches: tuple[int, ...]) -> Iterator[Case]:
    """``DeepLearningModel`` with its shipped weights on the first ``B`` scanned digits."""
    model, images, held_out = DeepLearningModel.pretrained(), digits("all")[0], digits("held_out")
    for batch in batches:
        yield Case(f"DeepLearningModel, batch {batch}", model, images[:batch], held_out)


def net_cases(batches: tuple[int, ...]) -> Iterator[Case]:
    """``Net`` with informative weights on ``B`` variants of the photograph."""
    model, photo = informative_net(), photograph()
    for batch in batches:
        yield Case(f"Net, batch {batch}", model, variants(photo, batch))


def informative_net(seed: int = 0) -> Net:
    """A seeded ``Net`` in eval mode whose outputs tell right from wrong.

    As PyTorch initialises it, 80 % of its outputs are exactly 0.5, because the ReLU before the sigmoid gives 0, and a
    wrong kernel could pass. With He's initialisation (arXiv:1502.01852), ``fc2``'s weights doubled and its bias 1, the
    outputs on the photograph spread from 0.5 to 0.99 and 6 % of them are exactly 0.5.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net = Net().eval()
        for layer in (net.conv1, net.fc1, net.fc2):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        net.fc2.weight.mul_(2)
        net.fc2.bias.fill_(1)
    return net


def variants(photo: Tensor, batch: int) -> Tensor:
    """``[batch, 3, 720, 480]``: the photograph ``[1, 3, 720, 480]``, each time moved on and a little darker.

    The first one is the photograph itself; the picture that leaves at one edge comes in at the other.
    """
    return torch.cat([torch.roll(photo, (7 * i, 11 * i), dims=(2, 3)) * (1 - 0.02 * i) for i in range(batch)])
