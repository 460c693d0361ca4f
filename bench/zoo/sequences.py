"""Networks over text, sound and other sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextCnn(nn.Module):
    """Of Kim 2014: convolutions of three widths over word vectors, the maximum over time, a linear layer."""

    vocabulary = 20_000

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(self.vocabulary, 128)
        self.convs = nn.ModuleList(nn.Conv1d(128, 100, width) for width in (3, 4, 5))
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(300, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Words ``[B, T]`` int64 to ``[B, 4]``."""
        vectors = self.words(x).transpose(1, 2)
        pooled = [F.relu(conv(vectors)).amax(dim=2) for conv in self.convs]
        result: Tensor = self.head(self.dropout(torch.cat(pooled, dim=1)))
        return result


class AudioNet(nn.Module):
    """M5 of Dai et al. 2017 on raw audio, with the widths of PyTorch's tutorial for speech commands."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        sizes = ((1, width, 80, 16), (width, width, 3, 1), (width, 2 * width, 3, 1), (2 * width, 2 * width, 3, 1))
        for inputs, outputs, kernel_size, stride in sizes:
            conv = nn.Conv1d(inputs, outputs, kernel_size, stride)
            layers += [conv, nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(4)]
        self.convs, self.head = nn.Sequential(*layers), nn.Linear(2 * width, 35)

    def forward(self, x: Tensor) -> Tensor:
        """A second at 8 kHz ``[B, 1, 8000]`` to ``[B, 35]``."""
        return F.log_softmax(self.head(self.convs(x).mean(dim=2)), dim=1)


class Encoder(nn.Module):
    """A small transformer encoder of PyTorch's own layers, and a linear layer over the mean."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, 64]`` to ``[B, 8]``."""
        result: Tensor = self.head(self.encoder(x).mean(dim=1))
        return result
