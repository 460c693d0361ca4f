"""What is measured: models on real data at several batch sizes, described so that a worker process can build them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastgraph.data import digits, photograph
from fastgraph.models import DeepLearningModel, Net

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class Built:
    """A model and its input.

    ``x`` is ``[B, ...]`` float32, or int64 for a model of ids. ``held_out`` holds the held-out digits ``[N, 784]`` and
    their classes ``[N]`` where the model is a classifier of digits.
    """

    model: nn.Module
    x: Tensor
    held_out: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Case:
    """A model at one batch size. It can be pickled: ``builder`` is a function of a module, given the batch.

    ``model`` names what the cases share that differ in the batch alone.
    """

    model: str
    batch: int
    builder: Callable[[int], Built]

    @property
    def name(self) -> str:
        """The case in the report: "Net, batch 4"."""
        return f"{self.model}, batch {self.batch}"

    def build(self) -> Built:
        """The model and the input, on the CPU in float32."""
        return self.builder(self.batch)


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The input in a floating dtype; ids stay what they are."""
    return x.to(dtype) if x.is_floating_point() else x


def deep(batches: Sequence[int]) -> list[Case]:
    """``DeepLearningModel`` with its shipped weights on scanned digits."""
    return [Case("DeepLearningModel", batch, build_deep) for batch in batches]


def net(batches: Sequence[int]) -> list[Case]:
    """``Net`` with informative weights on variants of the photograph."""
    return [Case("Net", batch, build_net) for batch in batches]


def chain(sizes: Sequence[int], activation: str, batches: Sequence[int]) -> list[Case]:
    """Linear layers of ``sizes`` with ``activation`` between them."""
    name = f"{'→'.join(map(str, sizes))} {activation}"
    return [Case(name, batch, partial(build_chain, tuple(sizes), activation)) for batch in batches]


def conv(channels: int, kernel_size: int, pool: int, batches: Sequence[int]) -> list[Case]:
    """Convolution of the photograph into ``channels``, ReLU, max-pool."""
    name = f"conv {kernel_size}x{kernel_size} to {channels}, pool {pool}x{pool}"
    return [Case(name, batch, partial(build_conv, channels, kernel_size, pool)) for batch in batches]


def own(name: str, model: nn.Module, x: Tensor) -> Case:
    """A model of your own in eval mode on its input ``x`` ``[B, ...]``, float32 on the CPU.

    The worker processes get it pickled, so its class must be one that they can import: in a module, not in a notebook.
    """
    return Case(name, x.shape[0], partial(build_own, model, x))


def build_own(model: nn.Module, x: Tensor, batch: int) -> Built:
    """What was given."""
    assert batch == x.shape[0]
    return Built(model, x)


def build_deep(batch: int) -> Built:
    """The first ``batch`` scanned digits, from the start again after the last one."""
    images = digits("all")[0]
    return Built(_deep_model(), images[torch.arange(batch) % len(images)], digits("held_out"))


def build_net(batch: int) -> Built:
    """``batch`` variants of the photograph."""
    return Built(informative_net(), variants(photograph(), batch))


def build_chain(sizes: tuple[int, ...], activation: str, batch: int) -> Built:
    """Digits, cut or repeated to the width of the first layer; weights that keep the size of the values."""
    model = _chain_model(sizes, activation)
    images = build_deep(batch).x
    return Built(model, images.repeat(1, -(-sizes[0] // 784))[:, : sizes[0]].contiguous())


def build_conv(channels: int, kernel_size: int, pool: int, batch: int) -> Built:
    """Variants of the photograph at a third of its height and width: 3 x 240 x 160."""
    photo = variants(photograph()[:, :, ::3, ::3].contiguous(), batch)
    return Built(_conv_model(channels, kernel_size, pool), photo)


@cache
def _deep_model() -> nn.Module:
    return DeepLearningModel.pretrained()


@cache
def _chain_model(sizes: tuple[int, ...], activation: str) -> nn.Module:
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for inputs, outputs in pairwise(sizes):
            linear = nn.Linear(inputs, outputs)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            layers += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1]).eval()  # the last layer's values as they are: nothing hides behind a ReLU


@cache
def _conv_model(channels: int, kernel_size: int, pool: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, channels, kernel_size), nn.ReLU(), nn.MaxPool2d(pool)).eval()


@cache
def informative_net(seed: int = 0) -> Net:
    """A seeded ``Net`` in eval mode whose outputs tell right from wrong.

    As PyTorch initialises it, 80 % of its outputs are exactly 0.5, because the ReLU before the sigmoid gives 0, and a
    wrong kernel could pass. With He's initialisation (arXiv:1502.01852), ``fc2``'s weights doubled and its bias 1, the
    outputs on the photograph spread from 0.5 to 0.99 and 6 % of them are exactly 0.5.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Net().eval()
        for layer in (model.conv1, model.fc1, model.fc2):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        model.fc2.weight.mul_(2)
        model.fc2.bias.fill_(1)
    return model


def variants(photo: Tensor, batch: int) -> Tensor:
    """``[batch, 3, H, W]``: the photograph ``[1, 3, H, W]``, each time moved on and a little darker.

    The first one is the photograph itself; the picture that leaves at one edge comes in at the other.
    """
    return torch.cat([torch.roll(photo, (7 * i, 11 * i), dims=(2, 3)) * (1 - 0.02 * i) for i in range(batch)])
