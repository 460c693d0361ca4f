"""The conv_pool and conv_pool_mlp kernels: every geometry, precision and special value."""

import pytest
import torch

from fastgraph.kernels.conv_pool import cuda as conv_pool
from fastgraph.kernels.conv_pool.op import Geometry
from fastgraph.kernels.conv_pool_mlp import cuda as conv_pool_mlp
from fastgraph.kernels.mlp import cuda as mlp
from tests.reference import layers
from tests.triton_interpreter.checks import (
    GEOMETRIES,
    KINDS,
    check_conv_pool,
    check_conv_pool_mlp,
    conv_arguments,
    generator,
    target,
)

SPECIAL = [float("nan"), float("inf"), float("-inf"), -float("nan")]
CHAIN = [9, 20, 3]  # the pooled rows of the geometry "net" are 9 wide


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometries(name: str) -> None:
    assert (check_conv_pool(name) > 0).float().mean() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_every_precision(kind: str) -> None:
    check_conv_pool("net", kind, bias=False)


@pytest.mark.parametrize("name", ["net", "resnet"])
def test_nan_and_infinities_go_where_eager_sends_them(name: str) -> None:
    check_conv_pool(name, special=SPECIAL)


def test_strides_and_batches() -> None:
    x, *rest = conv_arguments(generator(), *GEOMETRIES["net"], batch=3)
    exact = conv_pool.run(x, *rest, target=target())
    for view in (x.to(memory_format=torch.channels_last), x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)):
        assert torch.equal(conv_pool.run(view, *rest, target=target()), exact)
    one = conv_pool.run(x[1:2], *rest, target=target())
    torch.testing.assert_close(one, exact[1:2], rtol=1e-5, atol=1e-6)
    assert conv_pool.run(x[:0], *rest, target=target()).shape == (0, *exact.shape[1:])


def test_offsets_beyond_32_bits() -> None:
    """Images 2^30 elements apart; the memory between them is never touched."""
    far = torch.empty(2**31 + 64, dtype=torch.float16)
    x = far.as_strided((3, 1, 3, 3), (2**30, 9, 3, 1))
    x.copy_(torch.arange(27.0).view(3, 1, 3, 3))
    geometry = ([1, 1], [0, 0], [1, 1], [1, 1], [1, 1], [0, 0], False)
    y = conv_pool.run(x, torch.ones(1, 1, 3, 3, dtype=torch.float16), None, *geometry, target=target("fp16"))
    assert y.flatten().tolist() == [36.0, 117.0, 198.0]


@pytest.mark.parametrize("kind", KINDS)
def test_one_launch_in_every_precision(kind: str) -> None:
    y = check_conv_pool_mlp("net", CHAIN, ["relu", "none"], kind)
    assert y.float().std() > 0.3


@pytest.mark.parametrize(
    ("name", "features", "activations"),
    [
        ("net", [9, 5], ["log_softmax"]),
        ("net", [9, 33, 17, 2], ["silu", "relu", "softmax"]),
        ("lenet", [4, 3, 1], ["tanh", "relu+sigmoid"]),
        ("resnet", [5, 6, 2], ["relu", "none"]),
        ("dilated", [3, 6, 2], ["relu", "none"]),
        ("ceil", [7, 6, 2], ["relu", "none"]),
        ("pool_apart", [6, 2], ["relu"]),
        ("one_pixel", [1, 2], ["gelu"]),
    ],
)
def test_one_launch_of_every_geometry(name: str, features: list[int], activations: list[str]) -> None:
    kind = "ieee" if name in ("net", "dilated") else "tf32"  # in fp32 the interpreter goes through taps one by one
    check_conv_pool_mlp(name, features, activations, kind)


def test_strips_of_one_row_and_no_bias() -> None:
    check_conv_pool_mlp("net", CHAIN, ["relu", "none"], processors=10**6, bias=False)


@pytest.mark.parametrize("kind", ["ieee", "bf16"])
def test_one_launch_with_nan_and_infinities(kind: str) -> None:
    check_conv_pool_mlp("net", CHAIN, ["relu", "relu+sigmoid"], kind, special=SPECIAL)


def test_rows_that_are_not_pooled_rows_run_as_two_ops() -> None:
    x, weight, bias, *geometry = conv_arguments(generator(), *GEOMETRIES["net"])
    weights, biases = layers(generator(), [18, 3])
    arguments = (weight, bias, *geometry, weights, biases, ["relu"])
    reason = conv_pool_mlp.whole_refusal(x, weight, Geometry(*geometry), weights, "ieee")
    assert reason == "the rows of the mlp (18 features) are not the pooled rows"
    pooled = conv_pool.run(x, weight, bias, *geometry, target=target())
    expected = mlp.run(pooled.view(-1, 18), weights, biases, ["relu"], target=target())
    assert torch.equal(conv_pool_mlp.run(x, *arguments, target=target()), expected)
