"""The library as it is shipped, between guards: NaN around what is read, sentinels around what is written."""

import pytest
import torch

from fastgraph.kernels import native
from fastgraph.kernels.conv_pool import op as conv_pool
from fastgraph.kernels.conv_pool_mlp import op as conv_pool_mlp  # noqa: F401  (registers the op)
from fastgraph.kernels.mlp import op as mlp
from tests.reference import layers, random
from tests.test_kernels_conv_pool import CASES, arguments

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")

GUARD, SENTINEL = 4099, -123456.0


def guarded(values: torch.Tensor) -> torch.Tensor:
    """The same values as a view of memory that holds NaN before and after them."""
    memory = torch.full((values.numel() + 2 * GUARD,), float("nan"))
    view = memory[GUARD:-GUARD].view(values.shape)
    return view.copy_(values)


def result(count: int) -> torch.Tensor:
    """Memory for `count` results between two guards; all of it holds the sentinel."""
    return torch.full((count + 2 * GUARD,), SENTINEL)


def check(memory: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(memory[GUARD:-GUARD], expected.flatten())
    assert (memory[:GUARD] == SENTINEL).all()
    assert (memory[-GUARD:] == SENTINEL).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("sizes", [[5, 3], [33, 47, 1], [300, 129, 8, 9], [784, 512, 256, 10]], ids=str)
def test_mlp(sizes: list[int], generator: torch.Generator) -> None:
    weights, biases = layers(generator, sizes)
    activations = ["gelu"] * (len(weights) - 1) + ["softmax"]
    plan = mlp.packed([guarded(w) for w in weights], [guarded(b) for b in biases], activations)
    for rows in (1, 2, 7, 13, 97):
        x = random(generator, (rows, sizes[0]))
        expected = torch.ops.fastgraph.mlp.default(x, weights, biases, activations)
        assert expected.isfinite().all()
        for threads in (1, 3):
            y = result(expected.numel())
            plan.run([guarded(x)], [y[GUARD:-GUARD]], threads)
            check(y, expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", CASES)
def test_conv_pool_and_conv_pool_mlp(name: str, generator: torch.Generator) -> None:
    x, weight, bias, *geometry = arguments(generator, name)
    pooled = torch.ops.fastgraph.conv_pool.default(x, weight, bias, *geometry)
    assert pooled.isfinite().all()
    plan = conv_pool.packed(guarded(weight), guarded(bias), tuple(geometry))
    weights, biases = layers(generator, [pooled.shape[3], 20, 3])
    then = mlp.packed(weights, biases, ["relu", "none"])
    module = native.kernels()
    assert module is not None
    both = module.ConvPoolMlp(plan, then)
    rows = torch.ops.fastgraph.mlp.default(pooled.view(-1, pooled.shape[3]), weights, biases, ["relu", "none"])
    for threads in (1, 3):
        image = guarded(x)
        y = result(pooled.numel())
        plan.run([image], [y[GUARD:-GUARD]], threads)
        check(y, pooled)
        y = result(rows.numel())
        both.run([image], [y[GUARD:-GUARD]], threads)
        check(y, rows)
