"""fastgraph::mlp against float64, on every ISA of the machine."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgraph.kernels.mlp.reference as reference
from fastgraph.kernels.bound import Bound
from fastgraph.kernels.library import Op
from fastgraph.kernels.mlp.op import ACTIVATIONS
from tests.reference import check_op, layers, random

mlp = torch.ops.fastgraph.mlp.default
CHAINS = [
    [784, 512, 256, 10],
    [429, 1023, 511, 255, 1],
    [1, 1],
    [7, 5],
    [16, 16, 16],
    [257, 33],
    [300, 17, 15, 48, 3, 31],
]
ROWS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 23, 24, 25, 97, 200]


@pytest.mark.parametrize("sizes", CHAINS, ids=str)
@pytest.mark.usefixtures("isa")
def test_every_number_of_rows(sizes: list[int], generator: torch.Generator) -> None:
    weights, biases = layers(generator, sizes)
    activations = ["relu"] * (len(sizes) - 2) + ["none"]
    for rows in ROWS:
        check_op(mlp, reference.mlp, random(generator, (rows, sizes[0])), weights, biases, activations)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "relu+sigmoid", "tanh+gelu+silu+relu", "gelu+log_softmax"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.usefixtures("isa")
def test_every_activation(activation: str, scale: float, generator: torch.Generator) -> None:
    weights, biases = layers(generator, [40, 37])
    check_op(mlp, reference.mlp, random(generator, (50, 40), scale), weights, biases, [activation])


@pytest.mark.parametrize("activation", ["tanh", "relu+sigmoid", "gelu+softmax", "tanh+gelu+log_softmax"])
@pytest.mark.parametrize("features", [1, 2, 7, 8, 9, 16, 17, 24, 25, 120])
@pytest.mark.usefixtures("isa")
def test_heads_of_few_outputs(activation: str, features: int, generator: torch.Generator) -> None:
    """Half panels, alone and behind whole ones; what follows the last layer is applied when results lie together."""
    weights, biases = layers(generator, [33, 19, features])
    for rows in (1, 3, 4, 5, 12, 13, 33):
        check_op(mlp, reference.mlp, random(generator, (rows, 33), 3.0), weights, biases, ["relu", activation])


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu", "tanh", "sigmoid"])
@pytest.mark.usefixtures("isa")
def test_activation_over_the_whole_range(activation: str) -> None:
    """An identity layer: the activation alone, from denormals to values whose exponential overflows."""
    magnitudes = torch.logspace(-44, 3, 2000, dtype=torch.float64).float()
    x = torch.cat([magnitudes, -magnitudes, torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0])])[:, None]
    one, zero = torch.ones(1, 1), torch.zeros(1)
    y = check_op(mlp, reference.mlp, x, [one], [zero], [activation])
    # Relative to each value: eight times the distance of neighbouring floats, or eager's own distance if larger.
    exact = reference.ACTIVATIONS[activation](x.double())
    eager = reference.ACTIVATIONS[activation](x)
    allowed = 8 * torch.finfo(torch.float32).eps * exact.abs() + 4 * (eager - exact).abs().max()
    assert ((y - exact).abs() <= allowed + 1e-42).all()


@pytest.mark.usefixtures("isa")
def test_nan_and_infinities_go_where_eager_sends_them(generator: torch.Generator) -> None:
    weights, biases = layers(generator, [20, 19, 18])
    for activation in ACTIVATIONS:
        x = random(generator, (40, 20))
        for i, special in enumerate([float("nan"), float("inf"), float("-inf")] * 4):
            x[3 * i, i] = special
        check_op(mlp, reference.mlp, x, weights, biases, ["relu", activation])


@pytest.mark.usefixtures("isa")
def test_shapes_and_strides(generator: torch.Generator) -> None:
    weights, biases = layers(generator, [12, 9, 4])
    wide = random(generator, (30, 24))
    for x in (
        wide[:, 3:15],
        wide[::3, :12],
        wide.t()[:12].t(),
        wide[:1, :12].expand(8, 12),
        wide[:24].view(2, 3, 4, 24)[..., :12],
        wide[0, :12],
        wide.view(30, 2, 12)[:, 0],
        torch.empty(0, 12),
        torch.empty(3, 0, 12),
    ):
        check_op(mlp, reference.mlp, x, weights, biases, ["gelu", "softmax"])
    strided = [w.t().contiguous().t() for w in weights]
    check_op(mlp, reference.mlp, wide[:, :12], strided, [None, biases[1]], ["none", "none"])


@pytest.mark.usefixtures("isa")
def test_without_bias_and_with_empty_layers(generator: torch.Generator) -> None:
    weights, biases = layers(generator, [33, 65, 17], bias=False)
    check_op(mlp, reference.mlp, random(generator, (9, 33)), weights, biases, ["silu", "tanh"])
    check_op(mlp, reference.mlp, torch.empty(4, 0), [torch.empty(3, 0)], [torch.arange(3.0)], ["relu"])
    assert mlp(torch.ones(4, 3), [torch.empty(0, 3)], [None], ["none"]).shape == (4, 0)


@given(
    sizes=st.lists(st.integers(1, 70), min_size=2, max_size=6),
    rows=st.integers(0, 60),
    names=st.lists(st.sampled_from(ACTIVATIONS[:7]), min_size=5, max_size=5),
    last=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 2**31),
    threads=st.integers(1, 3),
)
@settings(max_examples=120, deadline=None)
def test_any_chain(sizes: list[int], rows: int, names: list[str], last: str, seed: int, threads: int) -> None:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(seed)
    weights, biases = layers(generator, sizes, bias=seed % 3 > 0)
    activations = [*names[: len(sizes) - 2], last]
    check_op(mlp, reference.mlp, random(generator, (rows, sizes[0])), weights, biases, activations)


def test_other_dtypes_run_through_aten(generator: torch.Generator) -> None:
    weights, biases = layers(generator, [12, 9])
    for dtype in (torch.float64, torch.float16):
        x = random(generator, (5, 12)).to(dtype)
        arguments = (x, [w.to(dtype) for w in weights], [b.to(dtype) for b in biases], ["relu"])
        assert torch.equal(mlp(*arguments), reference.mlp(*arguments))


def test_opcheck(generator: torch.Generator) -> None:
    weights, biases = layers(generator, [6, 5, 4])
    for tensor in (*weights, biases[0]):
        tensor.requires_grad_()
    x = random(generator, (3, 6)).requires_grad_()
    torch.library.opcheck(mlp, (x, weights, [biases[0], None], ["gelu", "log_softmax"]))
    torch.library.opcheck(mlp, (x, weights, [None, None], ["none", "none"]))


@pytest.mark.parametrize(
    "activation", ["gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "softmax", "log_softmax", "none"]
)
def test_gradients_of_both_orders(activation: str, generator: torch.Generator) -> None:
    weights, biases = layers(generator, [4, 3, 5])
    tensors = [t.double().requires_grad_() for t in (random(generator, (2, 4)), *weights, *biases)]

    def function(x, w1, w2, b1, b2):
        return mlp(x, [w1, w2], [b1, b2], ["tanh", activation])

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_gradients_equal_eager(generator: torch.Generator) -> None:
    weights, biases = layers(generator, [30, 20, 10])
    tensors = [t.requires_grad_() for t in (random(generator, (4, 30)), *weights, *biases)]
    arguments = (tensors[0], tensors[1:3], tensors[3:], ["relu", "relu+sigmoid"])
    ours = torch.autograd.grad(mlp(*arguments).sum(), tensors)
    eager = torch.autograd.grad(reference.mlp(*arguments).sum(), tensors)
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))
    assert any(g.abs().max() > 0 for g in ours)
    none = torch.autograd.grad(mlp(tensors[0], tensors[1:3], [None, None], ["relu", "none"]).sum(), tensors[:3])
    assert len(none) == 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(input=torch.ones(2, 5)), RuntimeError, r"input: needs shape \[..., 4\], got \[2, 5\]"),
        (dict(input=torch.tensor(1.0)), RuntimeError, r"input: needs shape \[..., 4\], got \[\]"),
        (
            dict(input=torch.ones(2, 4, dtype=torch.int64)),
            RuntimeError,
            r"input: needs a floating-point dtype, got torch.int64",
        ),
        (
            dict(input=torch.ones(2, 4).double()),
            RuntimeError,
            r"input: needs the dtype of weights, torch.float32, got torch.float64",
        ),
        (
            dict(input=torch.ones(2, 4, device="meta")),
            RuntimeError,
            r"input: needs the device of weights, cpu, got meta",
        ),
        (dict(weights=[]), RuntimeError, r"weights: needs at least one layer"),
        (
            dict(weights=[torch.ones(3, 4), torch.ones(2, 5)]),
            RuntimeError,
            r"weights\[1\]: needs shape \[\*, 3\], got \[2, 5\]",
        ),
        (
            dict(weights=[torch.ones(12), torch.ones(2, 3)]),
            RuntimeError,
            r"weights\[0\]: needs shape \[out_features, in_features\]",
        ),
        (dict(biases=[torch.ones(4), None]), RuntimeError, r"biases\[0\]: needs shape \[3\], got \[4\]"),
        (dict(biases=[None]), RuntimeError, r"needs as many weights, biases and activations, got 2, 1, 2"),
        (dict(activations=["relu", "mish"]), ValueError, r"activations\[1\]: needs one of none, relu, .*, got 'mish'"),
        (dict(activations=["softmax", "none"]), ValueError, r"activations\[0\]: softmax needs to be the last of all"),
        (dict(activations=["+".join(["relu"] * 5), "none"]), ValueError, r"activations\[0\]: needs at most 4"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_errors_name_the_argument(change: dict, error: type[Exception], message: str) -> None:
    good = dict(
        input=torch.ones(2, 4),
        weights=[torch.ones(3, 4), torch.ones(2, 3)],
        biases=[torch.ones(3), None],
        activations=["relu", "none"],
    )
    assert mlp(*good.values()).shape == (2, 2)
    with pytest.raises(error, match=message):
        mlp(*{**good, **change}.values())


def test_a_bound_op_gives_the_ops_bits(generator: torch.Generator) -> None:
    weights, biases = layers(generator, [50, 40, 30])
    bound = Bound(Op.named("mlp"), weights, biases, ["relu", "softmax"])
    for x in (random(generator, (7, 50)), random(generator, (7, 100))[:, ::2], random(generator, (2, 3, 50))):
        assert torch.equal(bound(x), mlp(x, weights, biases, ["relu", "softmax"]))
    with pytest.raises(RuntimeError, match="needs the dtype of weights"):
        bound(torch.ones(2, 50).double())


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("activation", ["none", "softmax", "log_softmax"])
def test_layers_without_inputs_or_outputs(activation: str, generator: torch.Generator) -> None:
    """Tensors without elements have no address, and a softmax of no features has nothing to look at."""
    for sizes in ([4, 0], [0, 20], [0, 0], [5, 0, 20], [5, 24, 0]):
        for rows in (1, 3, 300):
            weights, biases = layers(generator, sizes)
            x = random(generator, (rows, sizes[0]))
            check_op(mlp, reference.mlp, x, weights, biases, ["none"] * (len(sizes) - 2) + [activation])
