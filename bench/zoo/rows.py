"""Networks over rows of features: chains of linear layers with something in between."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def tabular() -> nn.Module:
    """Linear, ReLU, batch-norm, as many tabular networks are: ``[B, 32]`` to ``[B, 1]``."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((32, 256), (256, 256), (256, 128)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.BatchNorm1d(outputs), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(128, 1))


def layer_norm_mlp() -> nn.Module:
    """Linear, LayerNorm, ReLU: ``[B, 64]`` to ``[B, 8]``."""
    layers: list[nn.Module] = []
    for inputs in (64, 256, 256):
        layers += [nn.Linear(inputs, 256), nn.LayerNorm(256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 8))


class TabularResNet(nn.Module):
    """Normalised blocks around which the values pass (Gorishniy et al. 2021)."""

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


class NeRF(nn.Module):
    """Of Mildenhall et al. 2020: eight layers with the position again behind the fifth, then the view."""

    def __init__(self) -> None:
        super().__init__()
        widths = [63, *[256] * 4, 256 + 63, 256, 256]
        self.points = nn.ModuleList(nn.Linear(inputs, 256) for inputs in widths)
        self.density, self.feature = nn.Linear(256, 1), nn.Linear(256, 256)
        self.view, self.colour = nn.Linear(256 + 27, 128), nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Encoded position and direction ``[B, 63 + 27]`` to colour and density ``[B, 4]``."""
        position, direction = torch.split(x, [63, 27], dim=-1)
        hidden = position
        for i, layer in enumerate(self.points):
            hidden = F.relu(layer(hidden))
            if i == 4:
                hidden = torch.cat([position, hidden], dim=-1)
        density = self.density(hidden)
        hidden = F.relu(self.view(torch.cat([self.feature(hidden), direction], dim=-1)))
        return torch.cat([self.colour(hidden), density], dim=-1)


class Siren(nn.Module):
    """Sines between linear layers, initialised as Sitzmann et al. 2020 say."""

    frequency = 30.0

    def __init__(self) -> None:
        super().__init__()
        widths = (2, 256, 256, 256, 256)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.head = nn.Linear(256, 3)
        for i, layer in enumerate([*self.layers, self.head]):
            bound = 1 / layer.in_features if i == 0 else (6 / layer.in_features) ** 0.5 / self.frequency
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Coordinates ``[B, 2]`` to colours ``[B, 3]``."""
        for layer in self.layers:
            x = torch.sin(self.frequency * layer(x))
        result: Tensor = self.head(x)
        return result


class SacActor(nn.Module):
    """One body, two heads (Haarnoja et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(17, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.mean, self.log_std = nn.Linear(256, 6), nn.Linear(256, 6)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 17]`` to ``[B, 12]``."""
        hidden = self.body(x)
        return torch.cat([torch.tanh(self.mean(hidden)), self.log_std(hidden).clamp(-20, 2)], dim=1)


def dlrm_bottom() -> nn.Module:
    """The dense features' chain of a recommender."""
    return nn.Sequential(nn.Linear(13, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU())


class Dlrm(nn.Module):
    """Of Naumov et al. 2019 for rows as Criteo has them: 13 counts and 26 categories, all whole numbers."""

    dense, categories, vocabulary, width = 13, 26, 1000, 64
    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.bottom = dlrm_bottom()
        self.tables = nn.ModuleList(nn.Embedding(self.vocabulary, self.width) for _ in range(self.categories))
        vectors = self.categories + 1
        pairs = torch.tril_indices(vectors, vectors, -1)
        self.register_buffer("pairs", pairs[0] * vectors + pairs[1], persistent=False)
        self.first = nn.Linear(self.width + pairs.shape[1], 512)
        self.top = nn.Sequential(nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 39]`` int64 to the probability of a click ``[B, 1]``."""
        counts, ids = x[:, : self.dense], x[:, self.dense :]
        dense = self.bottom(torch.log1p(counts.to(self.first.weight.dtype)))
        vectors = torch.stack([dense, *(table(ids[:, i]) for i, table in enumerate(self.tables))], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)[:, self.pairs]
        result: Tensor = self.top(self.first(torch.cat([dense, products], dim=1)))
        return result
