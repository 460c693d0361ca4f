"""Small networks as people write them, most of which is not in fused kernels: none may be below eager.

Some are the zoo's, which has the peers too; with random weights all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from fastgraph.bench.cases import Built, Case
from fastgraph.bench.zoo.cases import STATISTICS_OF
from fastgraph.bench.zoo.entry import normal, photos
from fastgraph.bench.zoo.images import lenet
from fastgraph.bench.zoo.rows import dlrm_bottom
from fastgraph.bench.zoo.table import ZOO
from fastgraph.bench.zoo.weights import informative


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


FROM_ZOO = ("sac_actor", "tabular_resnet", "lenet5", "mnist", "cifar_vgg", "dqn")
NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "PPO actor": (_ppo_actor, normal(24)),
    "DLRM bottom": (dlrm_bottom, normal(13)),
    "LeNet, ReLU and max-pool": (partial(lenet, nn.ReLU, nn.MaxPool2d), photos(1, 32, 32)),
    **{ZOO[name].title: (ZOO[name].make, ZOO[name].example) for name in FROM_ZOO},
    "GRU": (partial(Recurrent, nn.GRU), normal(20, 32)),
    "LSTM": (partial(Recurrent, nn.LSTM), normal(20, 32)),
    "segmenter": (Segmenter, normal(50, 64)),
    "transformer layer": (partial(nn.TransformerEncoderLayer, 256, 4, 1024, batch_first=True), normal(32, 256)),
}
"""By title: the network, and what makes a batch for it."""


def small_nets(batches: Sequence[int]) -> list[Case]:
    """Each of ``NETS`` at each batch size."""
    return [Case(name, batch, partial(build_net, name)) for name in NETS for batch in batches]


def build_net(name: str, batch: int) -> Built:
    """The network and a batch for it."""
    make, example = NETS[name]
    return Built(informative(make, example(STATISTICS_OF)), example(batch))
