"""bf16 weights in the compiled kernels: fp32 or bf16 inputs, fp32 sums."""

import copy

import pytest
import torch

import fastgraph
from fastgraph.data import digits
from fastgraph.kernels import native
from fastgraph.kernels.conv_pool import op as conv_pool_op
from fastgraph.kernels.conv_pool import reference as conv_pool_reference
from fastgraph.kernels.library import Op
from fastgraph.kernels.mlp import reference as mlp_reference
from fastgraph.kernels.mlp.op import ACTIVATIONS
from fastgraph.kernels.native import cpu_capability
from fastgraph.models import DeepLearningModel, Net
from tests.reference import assert_close_to_reference, check_gradients, check_op, layers, random

ops = torch.ops.fastgraph
needs_kernels = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")
CHAINS = [[784, 512, 256, 10], [429, 1023, 511, 255, 1], [1, 1], [7, 5], [257, 33], [300, 17, 15, 48, 3, 31]]
ROWS = [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 18, 19, 24, 25, 97, 200]
GEOMETRY = ([1, 1], [1, 0], [1, 1], [3, 3], [2, 2], [1, 0], False)


def bf16(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [t.bfloat16() for t in tensors]


def convolution(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return random(generator, (11, 3, 3, 3), 27**-0.5).bfloat16(), random(generator, (11,)).bfloat16()


@needs_kernels
@pytest.mark.parametrize("sizes", CHAINS, ids=str)
def test_every_number_of_rows(sizes: list[int], isa: str, generator: torch.Generator) -> None:
    weights, biases = layers(generator, sizes)
    activations = ["gelu"] * (len(sizes) - 2) + ["none"]
    arguments = (bf16(weights), bf16(biases), activations)
    wide = ([w.float() for w in bf16(weights)], [b.float() for b in bf16(biases)], activations)
    for rows in ROWS:
        x = random(generator, (rows, sizes[0]))
        narrow = x.bfloat16()
        y = ops.mlp(narrow, *arguments)
        assert y.dtype == torch.bfloat16
        assert_close_to_reference(
            y,
            mlp_reference.mlp(narrow, *arguments),
            mlp_reference.mlp(narrow.double(), *([t.double() for t in ts] for ts in arguments[:2]), activations),
        )
        y = ops.mlp(x, *arguments)
        if isa == "avx512_bf16":
            continue  # there activations are rounded to bf16 too
        # Widened in registers or in L1, the weights are the same numbers, summed in the same order.
        assert torch.equal(y, ops.mlp(x, *wide))


@needs_kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.usefixtures("isa")
def test_every_activation_against_float64(activation: str, generator: torch.Generator) -> None:
    weights, biases = layers(generator, [41, 38])
    x = random(generator, (50, 41), 4.0).bfloat16()
    check_op(ops.mlp, mlp_reference.mlp, x, bf16(weights), bf16(biases), [activation])


@needs_kernels
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("hidden", [19, 20])
def test_nan_and_infinities_go_where_eager_sends_them(generator: torch.Generator, hidden: int) -> None:
    weights, biases = layers(generator, [21, hidden, 18])
    x = random(generator, (40, 21)).bfloat16()
    for i, special in enumerate([float("nan"), float("inf"), float("-inf")] * 4):
        x[3 * i, i] = special
    check_op(ops.mlp, mlp_reference.mlp, x, bf16(weights), bf16(biases), ["relu", "tanh"])


@needs_kernels
@pytest.mark.usefixtures("isa")
def test_rows_keep_their_bits_for_any_batch_and_threads(generator: torch.Generator) -> None:
    weights, biases = layers(generator, [301, 77, 10])
    arguments = (bf16(weights), bf16(biases), ["relu", "softmax"])
    for dtype in (torch.float32, torch.bfloat16):
        x = random(generator, (70, 301)).to(dtype)
        expected = torch.cat([ops.mlp(x[i : i + 1], *arguments) for i in range(70)])
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for batch in (1, 2, 3, 11, 13, 33, 70):
                assert torch.equal(ops.mlp(x[:batch], *arguments), expected[:batch])


@needs_kernels
def test_conv_pool_and_conv_pool_mlp(isa: str, generator: torch.Generator) -> None:
    weight, bias = convolution(generator)
    x = random(generator, (2, 3, 20, 59))
    y = check_op(ops.conv_pool, conv_pool_reference.conv_pool, x, weight, bias, *GEOMETRY)
    widened = torch.equal(y, ops.conv_pool(x, weight.float(), bias.float(), *GEOMETRY))
    assert widened is (isa != "avx512_bf16")
    narrow = check_op(ops.conv_pool, conv_pool_reference.conv_pool, x.bfloat16(), weight, bias, *GEOMETRY)
    assert narrow.dtype == torch.bfloat16
    weights, biases = layers(generator, [28, 40, 3])
    mlp = (bf16(weights), bf16(biases), ["relu", "none"])
    y = ops.conv_pool_mlp(x, weight, bias, *GEOMETRY, *mlp)
    rows = ops.conv_pool(x, weight, bias, *GEOMETRY).view(-1, 28)
    assert torch.equal(y, ops.mlp(rows, *mlp))


@needs_kernels
def test_images_in_bf16_are_widened_some_at_a_time(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = convolution(generator)
    x = random(generator, (5, 3, 20, 59)).bfloat16()
    weights, biases = layers(generator, [28, 40, 3])
    mlp = (bf16(weights), bf16(biases), ["relu", "none"])
    expected = ops.conv_pool(x, weight, bias, *GEOMETRY), ops.conv_pool_mlp(x, weight, bias, *GEOMETRY, *mlp)
    monkeypatch.setattr(conv_pool_op, "WIDENED_FLOATS", 2 * x[0].numel())
    assert torch.equal(ops.conv_pool(x, weight, bias, *GEOMETRY), expected[0])
    assert torch.equal(ops.conv_pool_mlp(x, weight, bias, *GEOMETRY, *mlp), expected[1])


def test_gradients_with_mixed_dtypes(generator: torch.Generator) -> None:
    weights, biases = layers(generator, [12, 9, 5])
    x, arguments = random(generator, (7, 12)), (bf16(weights), bf16(biases), ["gelu", "none"])
    check_gradients(ops.mlp, mlp_reference.mlp, [x, *arguments])
    weight, bias = convolution(generator)
    image = random(generator, (1, 3, 9, 11))
    check_gradients(ops.conv_pool, conv_pool_reference.conv_pool, [image, weight, bias, *GEOMETRY])


def test_opcheck_with_mixed_dtypes(generator: torch.Generator) -> None:
    weights, biases = layers(generator, [6, 5, 4])
    arguments = (bf16(weights), bf16(biases), ["gelu", "log_softmax"])
    torch.library.opcheck(ops.mlp.default, (random(generator, (3, 6)), *arguments))


def test_weights_of_two_dtypes_are_refused(generator: torch.Generator) -> None:
    weights, biases = layers(generator, [6, 5, 4])
    with pytest.raises(
        RuntimeError, match="weights: needs the dtype of all weights, torch.bfloat16, got torch.float32"
    ):
        ops.mlp(random(generator, (3, 6)), [weights[0].bfloat16(), weights[1]], biases, ["none", "none"])
    with pytest.raises(RuntimeError, match="needs the dtype of weights, torch.float16, got torch.float32"):
        ops.mlp(random(generator, (3, 6)), [w.half() for w in weights], [None, None], ["none", "none"])


@needs_kernels
def test_packed_weights_are_half_as_large(generator: torch.Generator) -> None:
    weights, biases = layers(generator, [784, 512, 256, 10])
    packing = Op.named("mlp").packing((bf16(weights), bf16(biases), ["relu", "relu", "none"]))
    assert packing is not None
    assert packing.kernel.packed_bytes <= 1.1 * sum(2 * t.numel() for t in (*weights, *biases))


@pytest.mark.parametrize("model", [DeepLearningModel.pretrained(), Net().eval()], ids=["deep", "net"])
def test_optimize_gives_one_op_without_casts(model: torch.nn.Module, generator: torch.Generator) -> None:
    x = random(generator, (2, 784) if isinstance(model, DeepLearningModel) else (1, 3, 60, 480))
    fast = fastgraph.optimize(model, (x,), dtype=torch.bfloat16)
    calls = [n for n in fast.rewritten.graph.nodes if n.op == "call_function"]
    fused = [n for n in calls if str(n.target).startswith("fastgraph.")]
    assert len(fused) == 1
    assert fused[0].args[0].op == "placeholder"  # the other calls are casts of parameters
    with torch.no_grad():
        y = fast(x)
        eager = copy.deepcopy(model).bfloat16()(x.bfloat16()).float()
        exact = copy.deepcopy(model).double()(x.double())
    assert y.dtype == torch.float32
    assert (y - exact).abs().max() <= 2 * (eager - exact).abs().max() + 8 * torch.finfo(torch.bfloat16).eps
    if cpu_capability() != "aten":
        assert "bfloat16 weights" in next(iter(fast.explain())).kernel


def test_digits_keep_their_classes() -> None:
    model, (images, labels) = DeepLearningModel.pretrained(), digits()
    with torch.no_grad():
        full = fastgraph.optimize(model, (images[:2],))(images).argmax(1)
        half = fastgraph.optimize(model, (images[:2],), dtype=torch.bfloat16)(images).argmax(1)
    accuracy = [(classes == labels).float().mean().item() for classes in (full, half)]
    assert accuracy[0] > 0.98
    assert abs(accuracy[0] - accuracy[1]) <= 0.001
    assert (full == half).float().mean().item() >= 0.999
