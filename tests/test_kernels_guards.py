"""The library as it is shipped, between guards: NaN around what is read, sentinels around what is written."""

from typing import Any

import pytest
import torch

from fastgraph.kernels import native
from fastgraph.kernels.library import Op
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


def inside(memory: torch.Tensor) -> torch.Tensor:
    """What is between the guards."""
    return memory[GUARD:-GUARD]


def kernel_of(name: str, *arguments: Any) -> Any:
    """The op's kernel with these weights packed."""
    packing = Op.named(name).packing(arguments)
    assert packing is not None
    return packing.kernel


def check(memory: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(inside(memory), expected.flatten())
    assert (memory[:GUARD] == SENTINEL).all()
    assert (memory[-GUARD:] == SENTINEL).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("sizes", [[5, 3], [33, 47, 1], [300, 129, 8, 9], [784, 512, 256, 10]], ids=str)
def test_mlp(sizes: list[int], generator: torch.Generator) -> None:
    weights, biases = layers(generator, sizes)
    activations = ["gelu"] * (len(weights) - 1) + ["softmax"]
    kernel = kernel_of("mlp", [guarded(w) for w in weights], [guarded(b) for b in biases], activations)
    for rows in (1, 2, 7, 13, 97):
        x = random(generator, (rows, sizes[0]))
        expected = torch.ops.fastgraph.mlp.default(x, weights, biases, activations)
        assert expected.isfinite().all()
        for threads in (1, 3):
            y = result(expected.numel())
            kernel.run([guarded(x)], [inside(y).view(expected.shape)], threads)
            check(y, expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", CASES)
def test_conv_pool_and_conv_pool_mlp(name: str, generator: torch.Generator) -> None:
    x, weight, bias, *geometry = arguments(generator, name)
    pooled = torch.ops.fastgraph.conv_pool.default(x, weight, bias, *geometry)
    assert pooled.isfinite().all()
    convolution = guarded(weight), guarded(bias), *geometry
    kernel = kernel_of("conv_pool", *convolution)
    weights, biases = layers(generator, [pooled.shape[3], 20, 3])
    both = kernel_of("conv_pool_mlp", *convolution, weights, biases, ["relu", "none"])
    rows = torch.ops.fastgraph.mlp.default(pooled.view(-1, pooled.shape[3]), weights, biases, ["relu", "none"])
    for threads in (1, 3):
        image = guarded(x)
        y = result(pooled.numel())
        kernel.run([image], [inside(y).view(pooled.shape)], threads)
        check(y, pooled)
        y = result(rows.numel())
        both.run([image], [inside(y).view(rows.shape)], threads)
        check(y, rows)
