"""Rule conv_pool: which convolutions fuse with their pool, and why others do not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgraph.capture import capture
from fastgraph.rewrite import rewrite
from tests.test_rewrite_simplify import IMAGE, Function, randomised, rewritten


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2)),
        (nn.Conv2d(3, 5, 3), nn.MaxPool2d(2), nn.ReLU()),
        (nn.Conv2d(3, 5, 3, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        (nn.Conv2d(3, 5, (3, 1), (2, 1), (1, 0), (1, 2)), nn.ReLU(), nn.MaxPool2d((1, 2), (2, 1), ceil_mode=True)),
        (nn.Conv2d(3, 5, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2)),
        (nn.Conv2d(3, 5, 2, padding="valid"), nn.ReLU(), nn.MaxPool2d(2)),
        (nn.Conv2d(3, 5, 3, bias=False), randomised(nn.BatchNorm2d(5)), nn.ReLU(True), nn.MaxPool2d(2)),
        (nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Dropout(), nn.MaxPool2d(2)),
    ],
    ids=["relu pool", "pool relu", "no bias", "all sizes", "same", "valid", "batch norm", "dropout"],
)
def test_fuses(layers: tuple[nn.Module, ...]) -> None:
    names, _ = rewritten(nn.Sequential(*layers), IMAGE)
    assert [n for n in names if n in ("conv_pool", "relu", "max_pool2d", "conv2d")] == ["conv_pool"]


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return F.max_pool2d(torch.relu(y), 2) + y.sum()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.MaxPool2d(2)), "groups=3 (the kernel takes 1)"),
        (
            nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2, dilation=2)),
            "pool dilation [2, 2] (the kernel takes 1)",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 5, 3), nn.MaxPool2d(2)),
            "there is no ReLU between convolution and pool, or behind them",
        ),
        (nn.Sequential(nn.Conv2d(3, 5, 3), nn.GELU(), nn.MaxPool2d(2)), "it does not follow a convolution"),
        (
            nn.Sequential(nn.Conv2d(3, 5, 2, padding="same"), nn.ReLU(), nn.MaxPool2d(2)),
            "padding='same' is not symmetric here",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 5, 1, padding=12), nn.ReLU(), nn.MaxPool2d(20, 1)),
            "20 windows of the pool lie on one row (the kernel takes 16)",
        ),
        (UsedTwice(), "conv2d is used elsewhere too"),
        (Function(lambda x: F.max_pool2d(torch.relu(x), 2)), "it does not follow a convolution"),
    ],
    ids=["groups", "pool dilation", "no relu", "gelu", "same", "windows", "used twice", "no conv"],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's, on purpose
def test_refuses_with_a_reason(model: nn.Module, reason: str) -> None:
    names, reasons = rewritten(model, IMAGE)
    assert "conv_pool" not in names
    assert reasons["conv_pool"] == reason


def test_an_image_without_a_batch_axis_stays() -> None:
    names, reasons = rewritten(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2)), IMAGE[0])
    assert "conv_pool" not in names
    assert reasons["conv_pool"] == "the input has no batch axis"


SHAPES = [(31, 8, True), (32, 16, False), (32, 17, True), (63, 17, True), (64, 28, False), (64, 500, False)]


@pytest.mark.parametrize(("channels", "width", "fuses"), SHAPES)
def test_what_is_faster_by_itself_is_left_so(channels: int, width: int, fuses: bool) -> None:
    model = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    names, reasons = rewritten(model, torch.randn(2, channels, 16, width))
    assert ("conv_pool" in names) is fuses
    where = f"{channels} input channels, a 3x3 kernel and rows of {width}"
    reason = f"convolution and pool by themselves are faster at {where}"
    assert reasons.get("conv_pool") == (None if fuses else reason)


class ComputedWidth(nn.Module):
    """How wide the image is stands in a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 8, 3, padding=1)

    def forward(self, x: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        columns = width.item()
        torch._check(columns >= 4)
        torch._check(columns <= 64)
        return F.max_pool2d(torch.relu(self.conv(x[..., :columns])), 2)


def test_a_width_that_is_computed_decides_nothing() -> None:
    result = rewrite(capture(ComputedWidth().eval(), (torch.randn(2, 32, 16, 64), torch.tensor(20))).graph_module)
    assert not [r for r in result.refusals if "faster" in r.reason]
