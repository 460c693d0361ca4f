"""Whole networks through `optimize`: the bench's zoo and torchvision's families, right at batches 1 and 3."""

import copy

import pytest
import torch

import fastgraph
from tests.reference import assert_close_to_reference
from tests.zoo import LEAST_SHARE, NETWORKS, network

pytest.importorskip("torchvision")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_right_at_batches_1_and_3(name: str) -> None:
    model, x = network(name, 3)
    fast = fastgraph.optimize(model, (x,), verify=False)
    share = fast.explain().fused_share
    assert share is not None
    assert share >= LEAST_SHARE[name]
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(x.double() if x.is_floating_point() else x)
        assert_depends_on_the_input(exact)
        for rows in (slice(0, 3), slice(0, 1)):
            assert_close_to_reference(fast(x[rows]), model(x[rows]), exact[rows])


def assert_depends_on_the_input(y: torch.Tensor) -> None:
    """Else wrong kernels would pass: samples' outputs differ by far more than an error may be."""
    assert (y[0] - y[1]).abs().mean() > 1e-3 * y[0].abs().mean()
