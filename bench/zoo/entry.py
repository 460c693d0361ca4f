"""What the bench knows of a network: how it is made, what goes in, at which batch sizes it is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgraph.bench.zoo.rows import Dlrm

SMALL, LARGE = (1, 64), (1,)
OFFLINE_SMALL, OFFLINE_LARGE = 1024, 16


@dataclass(frozen=True)
class Entry:
    """``make`` gives the network, ``example`` a batch of so many samples, the same in every process.

    ``batches`` are those of a run that names none, ``offline`` the one of the mode of that name. ``package`` is the
    optional one that ``make`` imports.
    """

    title: str
    make: Callable[[], nn.Module]
    example: Callable[[int], Tensor]
    batches: Sequence[int] = SMALL
    offline: int = OFFLINE_SMALL
    package: str | None = None


def normal(*sample: int) -> Callable[[int], Tensor]:
    """Normally distributed samples of this shape."""
    return partial(_normal, sample)


def photos(*sample: int) -> Callable[[int], Tensor]:
    """Images that differ in their large areas too, not only in noise that averages away: ``[C, H, W]``."""
    return partial(_photos, sample)


def uniform(*sample: int) -> Callable[[int], Tensor]:
    """Coordinates between -1 and 1."""
    return partial(_uniform, sample)


def ids(length: int, count: int) -> Callable[[int], Tensor]:
    """Sequences of so many whole numbers below ``count``, int64."""
    return partial(_ids, length, count)


def clicks(batch: int) -> Tensor:
    """Rows for ``Dlrm``, int64: counts that are mostly small, then categories."""
    generator = _seeded()
    counts = torch.randn(batch, Dlrm.dense, generator=generator).mul(1.5).exp().long()
    categories = torch.randint(Dlrm.vocabulary, (batch, Dlrm.categories), generator=generator)
    return torch.cat([counts, categories], dim=1)


def _normal(sample: tuple[int, ...], batch: int) -> Tensor:
    return torch.randn(batch, *sample, generator=_seeded())


def _photos(sample: tuple[int, ...], batch: int) -> Tensor:
    channels, height, width = sample
    coarse = torch.randn(batch, channels, 4, 4, generator=_seeded())
    return F.interpolate(coarse, (height, width)) + _normal(sample, batch) / 2


def _uniform(sample: tuple[int, ...], batch: int) -> Tensor:
    return torch.rand(batch, *sample, generator=_seeded()) * 2 - 1


def _ids(length: int, count: int, batch: int) -> Tensor:
    return torch.randint(count, (batch, length), generator=_seeded())


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)
