"""fastgraph::conv_pool_mlp against float64, on every ISA of the machine."""

from typing import Any

import pytest
import torch

import fastgraph.kernels.conv_pool_mlp.reference as reference
from fastgraph.kernels.bound import Bound
from fastgraph.kernels.library import Op
from tests.reference import check_gradients, check_op, layers, random

op = torch.ops.fastgraph.conv_pool_mlp.default
NET = ([1, 1], [0, 0], [1, 1], [3, 3], [2, 2], [0, 0], False)


def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *rest: Any) -> torch.Tensor:
    """The reference under the op's own signature."""
    *geometry, weights, biases, activations = rest
    return reference.conv_pool_mlp(x, weight, bias, tuple(geometry), weights, biases, activations)


def arguments(
    generator: torch.Generator, size: tuple[int, int], features: list[int], batch: int = 2
) -> tuple[Any, ...]:
    weights, biases = layers(generator, features)
    convolution = random(generator, (16, 3, 3, 3), 27**-0.5), random(generator, (16,))
    activations = ["relu"] * (len(features) - 2) + ["none"]
    return random(generator, (batch, 3, *size)), *convolution, *NET, weights, biases, activations


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize(
    ("size", "features"), [((45, 480), [238, 120, 1]), ((90, 37), [17, 33, 5]), ((7, 9), [3, 2]), ((300, 6), [1, 1])]
)
@pytest.mark.usefixtures("isa")
def test_one_row_per_pooled_row(
    batch: int, size: tuple[int, int], features: list[int], generator: torch.Generator
) -> None:
    y = check_op(op, plain, *arguments(generator, size, features, batch))
    assert batch == 0 or y.std() > 0.1


@pytest.mark.usefixtures("isa")
def test_activations_of_net(generator: torch.Generator) -> None:
    *rest, biases, activations = arguments(generator, (45, 480), [238, 120, 1])
    biases[-1] -= plain(
        *rest, biases, activations
    ).median()  # half of the values below the last ReLU's zero, half above
    y = check_op(op, plain, *rest, biases, ["relu", "relu+sigmoid"])
    assert 0.4 < (y > 0.5).float().mean() < 0.6


@pytest.mark.usefixtures("isa")
def test_rows_that_are_not_pooled_rows(generator: torch.Generator) -> None:
    """A width that divides otherwise: still right, as conv_pool and mlp one after the other."""
    check_op(op, plain, *arguments(generator, (21, 37), [34, 8, 1]))  # two pooled rows of 17 make a row
    check_op(op, plain, *arguments(generator, (21, 81), [13, 8, 1]))  # a pooled row of 39 makes three


def test_opcheck_and_gradients(generator: torch.Generator) -> None:
    x, weight, bias, *rest = arguments(generator, (21, 37), [17, 8, 2])
    for tensor in (x, weight, bias, *rest[-3], *rest[-2]):
        tensor.requires_grad_()
    torch.library.opcheck(op, (x, weight, bias, *rest))
    torch.library.opcheck(op, (x, weight, None, *rest[:-2], [None, None], rest[-1]))
    check_gradients(op, plain, (x, weight, bias, *rest))


def test_errors_name_the_argument(generator: torch.Generator) -> None:
    x, *rest = arguments(generator, (21, 37), [17, 8, 2])
    with pytest.raises(
        RuntimeError, match=r"conv_pool_mlp: input: needs pooled rows that divide into \[-1, 17\], got \[2, 3, 21, 39\]"
    ):
        op(torch.ones(2, 3, 21, 39), *rest)
    with pytest.raises(RuntimeError, match=r"conv_pool_mlp: input: needs shape \[B, 3, H, W\], got \[2, 4, 21, 37\]"):
        op(torch.ones(2, 4, 21, 37), *rest)
    with pytest.raises(RuntimeError, match=r"conv_pool_mlp: weights\[1\]: needs shape \[\*, 8\]"):
        op(x, *rest[:-3], [rest[-3][0], torch.ones(2, 9)], *rest[-2:])


def test_a_bound_op_gives_the_ops_bits(generator: torch.Generator) -> None:
    x, *rest = arguments(generator, (21, 37), [17, 8, 2])
    bound = Bound(Op.named("conv_pool_mlp"), *rest)
    for image in (x, x[:, :, :11].contiguous(), x[:1], x[:0], x.to(memory_format=torch.channels_last)):
        assert torch.equal(bound(image), op(image, *rest))
    with pytest.raises(RuntimeError, match="needs pooled rows that divide"):
        bound(torch.ones(2, 3, 21, 39))
