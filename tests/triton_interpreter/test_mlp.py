"""The mlp kernels: every precision, tile edge, activation and special value."""

import pytest
import torch

from fastgraph.kernels.cuda.tiles import Tile
from fastgraph.kernels.mlp import cuda as mlp
from fastgraph.kernels.mlp.op import ACTIVATIONS
from tests.reference import layers, random
from tests.triton_interpreter.checks import KINDS, Launcher, check_mlp, generator, target

SPECIAL = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", ["layers", "whole"])
def test_every_precision(kind: str, plan: str) -> None:
    y = check_mlp([70, 67, 40, 10], ["relu", "relu", "none"], 19, kind, plan)
    assert y.float().std() > 0.5


@pytest.mark.parametrize("plan", ["layers", "whole"])
def test_default_initialisation(plan: str) -> None:
    check_mlp([784, 65, 33, 10], ["relu", "relu", "none"], 5, "ieee", plan, default_init=True)


@pytest.mark.parametrize(
    ("rows", "sizes"), [(1, [1, 1]), (16, [32, 32]), (17, [33, 31]), (65, [31, 65]), (64, [64, 64])]
)
def test_either_side_of_a_tile(rows: int, sizes: list[int]) -> None:
    check_mlp(sizes, ["relu"], rows)


@pytest.mark.parametrize("sizes", [[5, 3, 2], [64, 64, 64], [33, 130, 17, 16, 1], [20, 9, 257 - 1]], ids=str)
def test_chains_in_one_launch(sizes: list[int]) -> None:
    check_mlp(sizes, ["silu"] * (len(sizes) - 2) + ["none"], 33, plan="whole")


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "relu+sigmoid", "tanh+gelu+silu+relu", "gelu+log_softmax"])
@pytest.mark.parametrize("plan", ["layers", "whole"])
def test_every_activation(activation: str, plan: str) -> None:
    for scale in (1.0, 30.0):
        x = random(generator(), (17, 20), scale)
        check_mlp([20, 9, 13], ["relu", activation], 17, plan=plan, x=x)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu", "tanh", "sigmoid"])
def test_activation_over_the_whole_range(activation: str) -> None:
    magnitudes = torch.logspace(-44, 3, 500, dtype=torch.float64).float()
    x = torch.cat([magnitudes, -magnitudes, torch.linspace(-12, 12, 401), torch.tensor([0.0, -0.0])])[:, None]
    one = torch.ones(1, 1)
    y = mlp.run(x, [one], [None], [activation], target=target())
    exact = mlp.FUNCTIONS[activation](x.double())
    eager = mlp.FUNCTIONS[activation](x)
    allowed = 8 * torch.finfo(torch.float32).eps * exact.abs() + 4 * (eager - exact).abs().max()
    assert ((y - exact).abs() <= allowed + 1e-42).all()


@pytest.mark.parametrize("plan", ["layers", "whole"])
@pytest.mark.parametrize("kind", ["ieee", "tf32x3", "bf16"])
def test_nan_and_infinities_go_where_eager_sends_them(plan: str, kind: str) -> None:
    for activation in ("relu", "sigmoid", "softmax", "gelu"):
        x = random(generator(), (12, 20))
        for i, special in enumerate(SPECIAL * 2):
            x[2 * i, i] = special
        check_mlp([20, 9, 18], ["relu", activation], 12, kind, plan, x=x)


@pytest.mark.parametrize("plan", ["layers", "whole"])
def test_without_bias(plan: str) -> None:
    check_mlp([20, 9, 13, 5, 4], ["silu", "relu", "tanh", "none"], 9, plan=plan, bias=False)


@pytest.mark.parametrize(
    ("depth", "kind", "descriptors"),
    [
        (40, "tf32", True),
        (40, "bf16", True),
        (37, "bf16", False),  # rows that are no multiple of 16 bytes
    ],
)
def test_tensor_descriptors(depth: int, kind: str, descriptors: bool) -> None:
    """Many rows on an architecture that has descriptors."""
    launcher = Launcher()
    check_mlp([depth, 24], ["relu"], 520, kind, architecture="sm_90", launch=launcher)
    assert [options["DESCRIPTORS"] for options in launcher.launched] == [descriptors]


def test_softmax_over_more_features_than_a_tile() -> None:
    check_mlp([7, mlp.WIDEST_SOFTMAX + 1], ["relu+softmax"], 3)


def test_any_strides() -> None:
    source = generator()
    weights, biases = layers(source, [12, 9, 4])
    wide = random(source, (30, 24))
    strided = [w.t().contiguous().t() for w in weights]
    views = (
        wide[:, 3:15],
        wide[::3, :12],
        wide.t()[:12].t(),
        wide[:1, :12].expand(8, 12),
        wide[:24].view(2, 12, 24)[..., :12],
        wide[0, :12],
    )
    for x in views:
        exact = mlp.run(x.contiguous(), weights, biases, ["gelu", "softmax"], target=target())
        assert exact.shape == (*x.shape[:-1], 4)
        assert torch.equal(mlp.run(x, strided, biases, ["gelu", "softmax"], target=target()), exact)
    x = wide[::3, :12]
    assert torch.equal(
        mlp.whole(x, strided, biases, ["gelu", "none"], target()),
        mlp.whole(x.contiguous(), weights, biases, ["gelu", "none"], target()),
    )


def test_offsets_beyond_32_bits() -> None:
    """Rows and features 2^30 elements apart; the memory between them is never touched."""
    far = torch.empty(2**31 + 64, dtype=torch.float16)
    for shape, strides in (((3, 4), (2**30, 1)), ((4, 3), (1, 2**30))):
        x = far.as_strided(shape, strides)
        x.copy_(torch.arange(12.0).view(shape))
        weight = torch.ones(2, shape[1], dtype=torch.float16)
        y = mlp.linear(x, weight, None, "none", target("fp16"))
        assert y[:, 0].tolist() == torch.arange(12.0).view(shape).sum(1).tolist()


@pytest.mark.parametrize("tile", [Tile(16, 16, 16, 4, 2), Tile(32, 64, 16, 4, 2), Tile(128, 32, 128, 8, 2)])
def test_any_tile(tile: Tile) -> None:
    source = generator()
    weights, biases = layers(source, [50, 45])
    x = random(source, (40, 50))
    y = mlp.linear(x, weights[0], biases[0], "relu", target(), tile)
    torch.testing.assert_close(y, mlp.linear(x, weights[0], biases[0], "relu", target()), rtol=1e-5, atol=1e-5)
