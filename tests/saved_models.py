"""Small models of many kinds, to be saved and loaded."""

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from tests.reference import random
from tests.test_rewrite_simplify import randomised

Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Pair:
    """A type of outputs that torch's pytrees were told of."""

    left: torch.Tensor
    right: torch.Tensor


pytree.register_dataclass(Pair)


class Apply(nn.Module):
    """A function as a module, with the layers that it takes."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Any) -> Any:
        return self.function(x, *self.layers)


class ApplyTwo(Apply):
    """Likewise, for two inputs."""

    def forward(self, x: Any, y: Any) -> Any:  # type: ignore[override]
        return self.function(x, y, *self.layers)


class UNet(nn.Module):
    """Pads what comes up to what went down, by sizes that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = torch.relu(self.down(x))
        up = self.up(torch.relu(self.deep(F.max_pool2d(skip, 2))))
        dy, dx = skip.shape[2] - up.shape[2], skip.shape[3] - up.shape[3]
        up = F.pad(up, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))
        return self.out(torch.cat([skip, up], 1))


class Tensors(nn.Module):
    """Parameters, buffers and plain tensors of all kinds of dtype, layout and memory."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed = nn.Parameter(torch.randn(4, 4).t())
        self.expanded = nn.Parameter(torch.randn(1, 4).expand(4, 4), requires_grad=False)
        self.tied = self.transposed
        self.register_buffer("buffer", torch.randn(4))
        self.register_buffer("view", self.buffer[1:])
        self.register_buffer("temporary", torch.randn(4), persistent=False)
        self.fp16, self.bf16 = torch.randn(4).half(), nn.Parameter(torch.randn(4).bfloat16())
        self.complex, self.fp64 = torch.randn(3, 4, dtype=torch.complex128), torch.randn(4).double()
        self.empty, self.scalar = torch.empty(0, 4), torch.tensor(2.5)
        self.boolean, self.bytes = torch.tensor([True, False, True, True]), torch.arange(4, dtype=torch.uint8)
        self.int8 = torch.arange(-2, 2, dtype=torch.int8)
        self.conv = nn.Conv2d(1, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x @ self.transposed + x @ self.expanded + self.tied[0] + self.buffer + self.temporary + self.scalar
        y = y + self.boolean + self.bytes + self.int8 + self.fp16 + self.bf16 + self.fp64
        y = torch.cat([y, self.empty])
        z = y[:, 1:] * self.view + torch.tensor([1.0, 2.0, 3.0])
        return y, z, (y[:, None] * self.complex).sum(1), self.conv(x.new_ones(1, 1, 5, 5))


class Branches(nn.Module):
    """A torch.cond whose branches have layers."""

    def __init__(self) -> None:
        super().__init__()
        self.yes, self.no = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.yes(x), lambda x: torch.relu(self.no(x)), (x,))


class Regions(nn.Module):
    """A region without gradients, and one with autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = self.layer(x)
        return self.layer(y.float())


def masked(x: torch.Tensor) -> torch.Tensor:
    mask = x.new_zeros((x.shape[1], x.shape[2]))
    mask[0:-2, 0:-2] = 1
    return x * mask[None, :, :, None]


def windows(x: torch.Tensor) -> torch.Tensor:
    x = x.view(x.shape[0], x.shape[1] // 2, 2, 2, 2, 4)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4)


def structures(x: torch.Tensor) -> Any:
    inner = collections.defaultdict(list, {3: x * 2, "k": (x, None)})
    return collections.OrderedDict(a=Point(x + 1, [x]), b=inner, c=collections.deque([x, x - 1], maxlen=4))


def infinite(x: torch.Tensor) -> torch.Tensor:
    x = x.masked_fill(x > 0, float("-inf")).clamp(max=math.inf)
    return x.nan_to_num(nan=math.nan, neginf=2.5)


def loop(x: torch.Tensor) -> Any:
    from torch._higher_order_ops import while_loop

    return while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, x * 2), (torch.tensor(0), x))


def mlp(dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)


def interpolate(**options: Any) -> nn.Module:
    return Apply(lambda x: F.interpolate(x, **options))


def attention() -> nn.Module:
    return nn.MultiheadAttention(8, 2, batch_first=True)


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False)


ROWS = torch.linspace(-2, 2, 12).view(3, 4)
# name: (how to make the model, shapes or inputs)
MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "interpolate to half": (
        lambda: Apply(lambda x: F.interpolate(x, size=(x.shape[2] // 2, x.shape[3] // 2))),
        (2, 3, 8, 8),
    ),
    "interpolate to an input": (
        lambda: Apply(
            lambda x, conv: F.interpolate(conv(x), size=x.shape[-2:], mode="bilinear"), nn.Conv2d(2, 4, 2, 2)
        ),
        (1, 2, 8, 8),
    ),
    "interpolate scale 2": (lambda: interpolate(scale_factor=2, mode="bilinear"), (1, 2, 8, 8)),
    "interpolate nearest": (lambda: interpolate(scale_factor=2), (1, 2, 8, 8)),
    "antialias": (lambda: interpolate(scale_factor=0.5, mode="bilinear", antialias=True), (2, 3, 8, 8)),
    "area": (lambda: interpolate(scale_factor=0.5, mode="area"), (2, 3, 8, 8)),
    "int(w * .5)": (lambda: Apply(lambda x: x[..., : int(x.shape[3] * 0.5)]), (2, 3, 8, 8)),
    "floor and ceil": (lambda: Apply(lambda x: x[:, math.floor(x.shape[1] / 4) : math.ceil(x.shape[1] / 2)]), (2, 9)),
    "round and root": (lambda: Apply(lambda x: x[:, : round(x.shape[1] / 2)] * x.shape[1] ** 0.5), (2, 9)),
    "min and max": (lambda: Apply(lambda x: x[:, : min(x.shape[1], x.shape[2])] * max(x.shape[1], 3)), (2, 9, 4)),
    "bits": (lambda: Apply(lambda x: x[:, : x.shape[1] >> 1] * (x.shape[1] & 6)), (2, 9)),
    "size / size": (lambda: Apply(lambda x: x * (x.shape[1] / x.shape[2])), (2, 9, 4)),
    "unet": (UNet, (1, 3, 9, 11)),
    "lstm": (lambda: nn.LSTM(8, 4, batch_first=True), (2, 5, 8)),
    "gru": (lambda: nn.GRU(8, 4, 2, bidirectional=True), (2, 5, 8)),
    "bilinear": (lambda: nn.Bilinear(4, 5, 3), ((2, 4), (2, 5))),
    "roll": (lambda: Apply(lambda x: torch.roll(x, (-1, -1), (1, 2))), (1, 8, 8, 4)),
    "new_zeros": (lambda: Apply(lambda x: x + x.new_zeros((x.shape[1], 1, 1))), (1, 8, 8, 4)),
    "new_zeros written to": (lambda: Apply(masked), (1, 8, 8, 4)),
    "pad by size": (lambda: Apply(lambda x: F.pad(x, (0, 0, 0, (4 - x.shape[2] % 4) % 4))), (1, 8, 7, 4)),
    "infinities": (lambda: Apply(infinite), (3, 8)),
    "windows": (lambda: Apply(windows), (1, 4, 4, 4)),
    "conv_transpose": (lambda: nn.ConvTranspose2d(2, 4, 2, 2), (1, 2, 8, 8)),
    "adaptive average": (lambda: nn.AdaptiveAvgPool2d(7), (1, 2, 14, 14)),
    "adaptive maximum": (lambda: nn.AdaptiveMaxPool2d((3, None)), (2, 2, 8, 9)),
    "attention": (lambda: Apply(lambda x, a: a(x, x, x)[0], attention()), (2, 5, 8)),
    "sdpa": (lambda: Apply(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True)), (2, 2, 5, 8)),
    "encoder": (encoder, (2, 5, 8)),
    "decoder": (lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), ((2, 5, 8), (2, 3, 8))),
    "pixel_shuffle": (lambda: nn.PixelShuffle(2), (2, 8, 3, 4)),
    "unfold": (lambda: nn.Unfold(3), (2, 2, 8, 9)),
    "fold": (lambda: nn.Fold((4, 5), 2), (2, 8, 12)),
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), randomised(nn.BatchNorm2d(4)), nn.ReLU()), (2, 3, 8, 8)),
    "embedding bag": (lambda: nn.EmbeddingBag(10, 4), torch.arange(6).view(2, 3)),
    "topk": (lambda: Apply(lambda x: torch.topk(x, 2)), (2, 4)),
    "max": (lambda: Apply(lambda x: x.max(1)), (2, 4)),
    "sort and median": (lambda: Apply(lambda x: (torch.sort(x), {"m": x.median(0)})), (2, 4)),
    "eigh": (lambda: Apply(lambda x: torch.linalg.eigh(x @ x.mT)), (2, 3, 3)),
    "structures": (lambda: Apply(structures), (2, 4)),
    "dataclass": (lambda: Apply(lambda x: Pair(x + 1, x * 2)), (2, 4)),
    "plain outputs": (lambda: Apply(lambda x: (x + 1, x.shape, x.shape[0] * 2, 2.5, "s", None, True)), (2, 4)),
    "complex": (lambda: Apply(lambda x: torch.view_as_real(x * (1 + 2j)).abs()), ROWS + 1j),
    "index": (lambda: Apply(lambda x: x[..., None, 1:3, ::2] + x[:, None, 1:3, [0, 2]]), (2, 4, 4)),
    "fft": (lambda: Apply(lambda x: torch.fft.rfft(x).abs()), (2, 8)),
    "einsum": (lambda: Apply(lambda x: torch.einsum("bij,bjk->bik", x, x.mT)), (2, 3, 4)),
    "chunk and split": (lambda: Apply(lambda x: (x.chunk(2, 1), torch.split(x, [2, 4], 1))), (2, 6)),
    "arange": (lambda: Apply(lambda x: x + torch.arange(x.shape[1], dtype=torch.float64)), (2, 6)),
    "in place": (lambda: Apply(lambda x: x.clone().add_(1).view(-1).mul_(2)), (2, 6)),
    "formats": (lambda: Apply(lambda x: x.to("cpu", torch.float64, memory_format=torch.channels_last)), (2, 6, 3, 3)),
    "nonzero": (lambda: Apply(lambda x: (x.nonzero(), x[x > 0] * 2)), (2, 4)),
    "item": (
        lambda: ApplyTwo(lambda x, n: x.new_zeros(n.item()) + x.sum().item()),
        (torch.ones(2, 4), torch.tensor(3)),
    ),
    "cond": (Branches, (2, 3)),
    "while": (lambda: Apply(loop), (2, 3)),
    "regions": (Regions, (2, 3)),
    "no_grad": (lambda: Apply(torch.no_grad()(lambda x, layer: layer(x)), nn.Linear(4, 4)), (2, 4)),
    "tensors": (Tensors, (2, 4)),
    "bfloat16": (lambda: mlp(torch.bfloat16), ROWS.bfloat16()),
    "float16": (lambda: mlp(torch.float16), ROWS.half()),
    "float64": (lambda: mlp(torch.float64), ROWS.double()),
    "complex128": (lambda: nn.Linear(4, 2).to(torch.complex128), ROWS.double() + 1j),
    "structured inputs": (
        lambda: Apply(lambda d: d["p"].x + d["p"].y * d["l"][0]),
        {"p": Point((2, 3), (2, 3)), "l": [(2, 3)]},
    ),
}


def make(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model in eval mode and its inputs."""
    generator = torch.Generator().manual_seed(7)
    build, inputs = MODELS[name]
    several = type(inputs) is tuple and not isinstance(inputs[0], int)

    def is_shape(value: Any) -> bool:
        return type(value) is tuple and isinstance(value[0], int)

    def tensor(value: Any) -> torch.Tensor:
        return random(generator, value) if is_shape(value) else value

    values = pytree.tree_map(tensor, inputs, is_leaf=is_shape)
    torch.manual_seed(11)
    return build().eval(), values if several else (values,)
