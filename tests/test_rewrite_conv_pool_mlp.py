"""Rule conv_pool_mlp: the rows of the mlp have to be the pooled rows."""

import pytest
import torch
from torch import nn

from fastgraph.models import Net
from tests.test_rewrite_simplify import rewritten

IMAGE = torch.randn(2, 3, 15, 17, generator=torch.Generator().manual_seed(1))  # pooled: [2, 4, 6, 7]


class Model(nn.Module):
    def __init__(self, features: int, view, tail=None) -> None:
        super().__init__()
        self.conv, self.linear, self.view, self.tail = nn.Conv2d(3, 4, 3), nn.Linear(features, 5), view, tail

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.max_pool2d(torch.relu(self.conv(x)), 3, 2)
        y = self.linear(self.view(pooled))
        return y if self.tail is None else self.tail(y, pooled)


def test_net_is_one_op() -> None:
    names, reasons = rewritten(Net(), torch.randn(1, 3, 720, 480))
    assert names == ["conv_pool_mlp"]
    assert reasons == {}


@pytest.mark.parametrize(
    "view",
    [lambda p: p.view(-1, 7), lambda p: p.reshape(-1, 7), lambda p: p.flatten(0, 2)],
    ids=["view", "reshape", "flatten"],
)
def test_rows_that_are_pooled_rows(view) -> None:
    assert rewritten(Model(7, view), IMAGE)[0] == ["conv_pool_mlp"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Model(168, lambda p: p.flatten(1)), "the rows of the mlp (168 features) are not the pooled rows (7)"),
        (Model(14, lambda p: p.view(-1, 14)), "the rows of the mlp (14 features) are not the pooled rows (7)"),
        (Model(7, lambda p: p), "its result would keep four dimensions"),
        (
            Model(7, lambda p: p.view(-1, 7), lambda y, p: y + p.sum()),
            "the pooled rows are used elsewhere too",
        ),
    ],
    ids=["flat", "two rows", "four dimensions", "used twice"],
)
def test_others_stay_two_ops_with_a_reason(model: nn.Module, reason: str) -> None:
    names, reasons = rewritten(model, IMAGE)
    assert "conv_pool" in names
    assert "mlp" in names
    assert reasons["conv_pool_mlp"] == reason
