"""What can be proven about the ops on CUDA without a GPU: what a trace holds, which kernels are chosen, and why not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._functorch.aot_autograd import aot_function

from fastgraph.kernels.conv_pool import cuda as conv_pool
from fastgraph.kernels.conv_pool.op import Geometry
from fastgraph.kernels.conv_pool_mlp import cuda as conv_pool_mlp
from fastgraph.kernels.cuda import architecture, choices, dispatch, target, tiles
from fastgraph.kernels.cuda.architecture import ARCHITECTURES, COMPILED, OLDEST
from fastgraph.kernels.cuda.choices import Choice
from fastgraph.kernels.cuda.measure import Trial, Trials, measure
from fastgraph.kernels.cuda.target import Target, activation_code, fp32_precision, padded
from fastgraph.kernels.cuda.tiles import Tile
from fastgraph.kernels.mlp import cuda as mlp
from fastgraph.kernels.mlp.op import ACTIVATIONS
from tests.gpu import on_cuda, stand_in_gpu
from tests.reference import layers, random

pytestmark = pytest.mark.usefixtures("own_table")

SM_90 = Target(ARCHITECTURES["sm_90"], "ieee", 132, lambda kernel: kernel)
GEOMETRY = ([1, 1], [0, 0], [1, 1], [3, 3], [2, 2], [0, 0], False)
ACTIVATIONS_OF_CHAIN = ["relu", "relu", "softmax"]
WRAPPER = "triton_kernel_wrapper_functional"


# ---- what Inductor is given


def inference_graph(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The calls in the graph that AOTAutograd hands to Inductor."""
    graphs: list[Any] = []

    def keep(graph_module: Any, inputs: Any) -> Any:
        graphs.append(graph_module.graph)
        return graph_module.forward

    with torch.no_grad():
        aot_function(function, fw_compiler=keep, inference_compiler=keep)(*arguments)
    return [n for n in graphs[0].nodes if n.op == "call_function"]


def kernels_in(calls: list[Any]) -> list[str]:
    """Names of the Triton kernels that a graph's calls launch."""
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

    names = []
    for call in calls:
        if WRAPPER in str(call.target):
            kernel = kernel_side_table.get_kernel(call.kwargs["kernel_idx"])
            name = getattr(kernel, "__name__", None) or kernel.fn.__name__  # launch options are an Autotuner's
            names.append(f"{name} by descriptors" if call.kwargs["kwargs"].get("DESCRIPTORS") else name)
    return names


def chain(generator: torch.Generator, rows: int, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    weights, biases = layers(generator, [784, 512, 256, 10])
    tensors = (random(generator, (rows, 784)), weights, biases)
    return torch.utils._pytree.tree_map(lambda t: t.to(dtype), tensors)


def test_a_trace_of_mlp_has_a_kernel_a_layer(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = chain(generator, 8)
    with stand_in_gpu(monkeypatch):
        calls = inference_graph(
            lambda *t: torch.ops.fastgraph.mlp.default(*t, ACTIVATIONS_OF_CHAIN), *on_cuda(arguments)
        )
    assert kernels_in(calls) == ["linear_kernel"] * 3
    assert not any("fastgraph" in str(n.target) for n in calls)
    # Inductor knows that a kernel writes to its output only: it need not copy the operands.
    assert all(n.kwargs["tensors_to_clone"] == ["y_ptr"] for n in calls if WRAPPER in str(n.target))


@pytest.mark.parametrize(
    ("rows", "dtype", "expected"),
    [
        (mlp.WHOLE_FROM, torch.bfloat16, ["mlp_kernel"]),
        (1024, torch.bfloat16, ["linear_kernel by descriptors"] * 3),
        (16, torch.float16, ["linear_kernel"] * 3),
    ],
)
def test_rows_decide_about_kernels(
    rows: int, dtype: torch.dtype, expected: list[str], generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = chain(generator, 1, dtype)
    with stand_in_gpu(monkeypatch):
        x = torch.empty(rows, 784, dtype=dtype, device="cuda")
        calls = inference_graph(
            lambda *t: torch.ops.fastgraph.mlp.default(*t, ACTIVATIONS_OF_CHAIN), x, *on_cuda(arguments[1:])
        )
    assert kernels_in(calls) == expected


def net(generator: torch.Generator) -> tuple[Any, ...]:
    weights, biases = layers(generator, [238, 120, 1])
    return (
        random(generator, (1, 3, 30, 480)),
        random(generator, (16, 3, 3, 3)),
        random(generator, (16,)),
        weights,
        biases,
    )


def test_a_trace_of_net_has_one_kernel(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def function(x, weight, bias, weights, biases):
        return torch.ops.fastgraph.conv_pool_mlp.default(
            x, weight, bias, *GEOMETRY, weights, biases, ["relu", "relu+sigmoid"]
        )

    arguments = net(generator)
    with stand_in_gpu(monkeypatch):
        calls = inference_graph(function, *on_cuda(arguments))
    assert kernels_in(calls) == ["conv_pool_mlp_kernel"]
    with stand_in_gpu(monkeypatch):
        monkeypatch.setenv("FASTGRAPH_CUDA_FP32", "tf32x3")  # which spills in one launch
        calls = inference_graph(function, *on_cuda(arguments))
    assert kernels_in(calls) == ["conv_pool_kernel", "linear_kernel", "linear_kernel"]


def test_export_keeps_the_op(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    class Chain(torch.nn.Module):
        def forward(self, x, w1, w2, w3, b1, b2, b3):
            return torch.ops.fastgraph.mlp.default(x, [w1, w2, w3], [b1, b2, b3], ACTIVATIONS_OF_CHAIN)

    x, weights, biases = chain(generator, 8)
    with stand_in_gpu(monkeypatch):
        program = torch.export.export(Chain(), on_cuda((x, *weights, *biases)), strict=False)
    assert [str(n.target) for n in program.graph.nodes if n.op == "call_function"] == ["fastgraph.mlp.default"]


def test_without_kernels_a_trace_has_aten(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = chain(generator, 8, torch.float64)
    with stand_in_gpu(monkeypatch):
        assert dispatch.describe("mlp", (*on_cuda(arguments), ACTIVATIONS_OF_CHAIN)) == ("ATen", "float64 on sm_90")
        calls = inference_graph(
            lambda *t: torch.ops.fastgraph.mlp.default(*t, ACTIVATIONS_OF_CHAIN), *on_cuda(arguments)
        )
    assert kernels_in(calls) == []
    assert sum("addmm" in str(n.target) for n in calls) == 3


def test_wrong_tensors_are_the_ops_errors(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    _, weights, biases = chain(generator, 8)
    with stand_in_gpu(monkeypatch), pytest.raises(RuntimeError, match="needs the device of weights, cpu, got cuda:0"):
        torch.ops.fastgraph.mlp.default(torch.empty(8, 784, device="cuda"), weights, biases, ACTIVATIONS_OF_CHAIN)


# ---- which kernels, and why not


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ([784, 512, 256, 10], None),
        ([784, 10], "1 layers (one launch takes 2 to 4)"),
        ([8, 8, 8, 8, 8, 8], "5 layers (one launch takes 2 to 4)"),
        ([8, 2048, 257], "257 features (one launch keeps up to 256 behind the first layer)"),
    ],
)
def test_a_chain_that_is_not_one_launch(sizes: list[int], reason: str | None, generator: torch.Generator) -> None:
    weights, _ = layers(generator, sizes)
    assert mlp.whole_refusal(weights, "bf16") == reason
    assert mlp.whole_refusal(weights, "tf32x3") == "tf32x3 (three products at once spill the registers of one launch)"


def test_sizes_beyond_32_bits() -> None:
    def sized(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    weights = [sized(2, 1)]
    assert mlp.refusal(sized(2**31 - 1, 1), weights, [None], ["relu"]) is None
    assert mlp.refusal(sized(2**31, 1), weights, [None], ["relu"]) == "more than 2147483647 rows"
    assert mlp.refusal(sized(3, 0), [sized(2, 0)], [None], ["relu"]) == "a layer without features"
    chain = [sized(2**16, 2**15), sized(8, 2**16)]
    assert mlp.whole_refusal(chain, "bf16") == "more than 2147483647 weights in a layer"
    image, one = sized(1, 1, 2**16, 2**15), ([1, 1], [0, 0], [1, 1], [1, 1], [1, 1], [0, 0], False)
    assert conv_pool.refusal(image, sized(1, 1, 1, 1), None, *one) == "more than 2147483647 pooled pixels an image"
    assert conv_pool.refusal(image[:, :, 1:], sized(1, 1, 1, 1), None, *one) is None
    assert conv_pool.refusal(image, sized(2**16, 2**15, 1, 1), None, *one) == "more than 2147483647 weights"
    assert conv_pool.refusal(image, sized(0, 1, 1, 1), None, *one) == "a convolution without weights"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(), None),
        (dict(pool=[5, 3]), "pool kernel 5 over stride 2 (rows of one window are in two steps at most)"),
        (dict(pool=[4, 4], pool_stride=[4, 4]), "16 products a pooled row (one launch unrolls up to 9)"),
        (dict(channels=30), "270 weights a channel (one launch keeps up to 256)"),
        (dict(features=[238, 8, 8, 8, 8]), "4 layers (one launch takes up to 3)"),
        (dict(features=[238, 129]), "129 features (one launch keeps up to 128 behind the first layer)"),
        (dict(features=[512, 8]), "rows of 512 pooled pixels (one launch keeps up to 511)"),
        (dict(features=[119, 8]), "the rows of the mlp (119 features) are not the pooled rows"),
    ],
    ids=str,
)
def test_a_conv_pool_mlp_that_is_not_one_launch(
    change: dict[str, Any], reason: str | None, generator: torch.Generator
) -> None:
    channels = change.get("channels", 3)
    weights, _ = layers(generator, change.get("features", [238, 120, 1]))
    pool, pool_stride = change.get("pool", [3, 3]), change.get("pool_stride", [2, 2])
    geometry = Geometry([1, 1], [0, 0], [1, 1], pool, pool_stride, [0, 0], False)
    x, weight = torch.empty(1, channels, 30, 480), torch.empty(16, channels, 3, 3)
    assert conv_pool_mlp.whole_refusal(x, weight, geometry, weights, "bf16") == reason


def test_descriptions(generator: torch.Generator) -> None:
    weights, biases = layers(generator, [784, 512, 256, 10])
    x = torch.empty(4, 784)
    plan, reason = mlp.describe(x, weights, biases, ACTIVATIONS_OF_CHAIN, target=SM_90)
    assert plan == "a kernel a layer, one launch from 16384 rows on (default, not measured)"
    assert reason is None
    choices.record(mlp.key(weights, torch.float32, SM_90), Choice(16, "layers", None, 3.0))
    choices.record(mlp.key(weights, torch.float32, SM_90), Choice(4096, "whole", Tile(64, 64, 32, 8, 2), 40.0))
    plan, reason = mlp.describe(x, weights, biases, ACTIVATIONS_OF_CHAIN, target=SM_90)
    assert plan == "measured: a kernel a layer at 16, one launch at 4096"
    wide, wide_biases = layers(generator, [8, 8, 1000])
    plan, reason = mlp.describe(x, wide, wide_biases, ["relu", "none"], target=SM_90)
    assert plan == "a kernel a layer"
    assert reason == "not one launch: 1000 features (one launch keeps up to 256 behind the first layer)"


class Properties:
    """What torch.cuda says about a GPU."""

    def __init__(self, major: int, minor: int) -> None:
        self.major, self.minor = major, minor


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 0), "compute capability 7.0 is older than 7.5"),
        ((7, 5), "sm_75"),
        ((8, 6), "sm_86"),
        ((9, 0), "sm_90"),
        ((12, 1), "sm_120"),
    ],
)
def test_architectures(capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties(*capability))
    monkeypatch.setattr(torch.version, "hip", None)
    found = architecture._of.__wrapped__(0)
    assert (found if isinstance(found, str) else found.name) == expected
    assert min(a.number for a in ARCHITECTURES.values() if not a.is_amd) == OLDEST


def test_reasons_for_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(target, "architecture_of", lambda device: ARCHITECTURES["sm_75"])
    assert target.unavailable(device, torch.float32) is None
    assert target.unavailable(device, torch.float16) == "float16 on sm_75"
    assert target.unavailable(device, torch.bfloat16) == "bfloat16 on sm_75"
    assert target.unavailable(device, torch.float64) == "float64 on sm_75"
    monkeypatch.setattr(target, "architecture_of", lambda device: "compute capability 6.1 is older than 7.5")
    assert target.unavailable(device, torch.float32) == "compute capability 6.1 is older than 7.5"
    monkeypatch.setattr(target, "has_triton", lambda: False)
    assert target.unavailable(device, torch.float32) == "Triton is not installed"


def test_fp32_precision_follows_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    sm_80, sm_75, amd = (ARCHITECTURES[name] for name in ("sm_80", "sm_75", "gfx942"))
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        assert fp32_precision(sm_80) == "ieee"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert [fp32_precision(a) for a in (sm_80, sm_75, amd)] == ["tf32", "ieee", "tf32"]
        monkeypatch.setenv("FASTGRAPH_CUDA_FP32", "tf32x3")
        assert [fp32_precision(a) for a in (sm_80, sm_75, amd)] == ["tf32x3", "ieee", "ieee"]
        monkeypatch.setenv("FASTGRAPH_CUDA_FP32", "fp8")
        message = "FASTGRAPH_CUDA_FP32: needs one of ieee, tf32x3, tf32, got 'fp8'"
        with pytest.raises(RuntimeError, match=message):
            fp32_precision(sm_80)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_codes_and_sizes() -> None:
    assert activation_code([], ACTIVATIONS) == 0
    assert activation_code(["relu", "sigmoid"], ACTIVATIONS) == 61
    assert activation_code(["gelu", "log_softmax"], ACTIVATIONS) == 80002
    assert [padded(n) for n in (1, 16, 17, 238, 256)] == [16, 16, 32, 256, 256]


@pytest.mark.parametrize("name", COMPILED)
def test_candidates_begin_with_the_default_and_fit(name: str) -> None:
    gpu = Target(ARCHITECTURES[name], "ieee", 1, lambda kernel: kernel)
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (1, 100, 10000):
            default, *others = tiles.linear_candidates(rows, 512, dtype, gpu, False)
            assert default == tiles.linear(rows, 512, dtype, gpu, False)
            assert len(others) > 3
            for tile in others:
                assert tile.stages * (tile.m + tile.n) * tile.k * dtype.itemsize <= gpu.architecture.shared_a_block
                assert tile.m <= max(16, 2 * rows)


def test_an_allocator_is_there_for_descriptors_and_the_users_own_stays() -> None:
    from triton.runtime import _allocation

    def own(size: int, alignment: int, stream: int | None) -> Any:
        raise AssertionError("not called")

    before = _allocation._allocator.get()
    try:
        _allocation._allocator.set(_allocation.NullAllocator())
        dispatch.kernel_itself(None)
        assert not isinstance(_allocation._allocator.get(), _allocation.NullAllocator)
        _allocation.set_allocator(own)
        dispatch.kernel_itself(None)
        assert _allocation._allocator.get() is own
    finally:
        _allocation._allocator.set(before)


# ---- measured choices


def test_choices_are_saved_and_the_nearest_holds(own_table: Path) -> None:
    assert choices.chosen("mlp", 5) is None
    choices.record("mlp", Choice(4096, "whole", Tile(64, 64, 32, 8, 2), 40.0))
    choices.record("mlp", Choice(16, "whole", None, 9.0))
    choices.record("mlp", Choice(16, "layers", None, 3.0))  # in the place of the one before
    choices.table.cache_clear()
    assert [choices.chosen("mlp", rows).rows for rows in (0, 1, 255, 256, 257, 10**6)] == [16, 16, 16, 16, 4096, 4096]
    assert choices.chosen("mlp", 300).tile == Tile(64, 64, 32, 8, 2)
    assert len(json.loads(own_table.read_text())["mlp"]) == 2


def test_another_table_has_another_digest() -> None:
    before = choices.digest()
    choices.record("mlp", Choice(16, "layers", None, 3.0))
    assert choices.digest() != before
    choices.table.cache_clear()
    assert choices.digest() != before


@pytest.mark.parametrize("text", ["{", "[]", '{"mlp": [{"rows": 1}]}', '{"mlp": [{"rows": 1, "plan": "", "tile": 3}]}'])
def test_a_broken_table_is_named(text: str, own_table: Path) -> None:
    own_table.write_text(text)
    with pytest.raises(ValueError, match=r"choices.json: not a table of choices"):
        choices.table()


def test_the_fastest_is_recorded_and_what_does_not_fit_passed_over() -> None:
    from triton.runtime.errors import OutOfResources

    times = {"layers": 5.0, "whole": 3.0}

    def bench(call: Callable[[], Any]) -> float:
        return times[call()]

    def too_large() -> str:
        raise OutOfResources(300000, 100000, "shared memory")

    ways = [
        Trial("layers", None, lambda: "layers"),
        Trial("whole", Tile(128, 64, 64, 8, 3), too_large),
        Trial("whole", Tile(64, 64, 64, 8, 2), lambda: "whole"),
    ]
    assert measure(Trials("mlp", 16, ways), bench) == Choice(16, "whole", Tile(64, 64, 64, 8, 2), 3.0)
    assert choices.chosen("mlp", 20).plan == "whole"
    with pytest.raises(RuntimeError, match="conv_pool: no tile fits this GPU"):
        measure(Trials("conv_pool", 16, ways[1:2]), bench)


def test_a_measured_choice_is_what_is_traced(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = chain(generator, 8)
    tile = Tile(32, 64, 32, 4, 2)
    choices.record(mlp.key(arguments[1], torch.float32, SM_90), Choice(8, "whole", tile, 1.0))
    with stand_in_gpu(monkeypatch):
        calls = inference_graph(
            lambda *t: torch.ops.fastgraph.mlp.default(*t, ACTIVATIONS_OF_CHAIN), *on_cuda(arguments)
        )
    assert kernels_in(calls) == ["mlp_kernel"]
    launch = next(n for n in calls if WRAPPER in str(n.target))
    assert launch.kwargs["kwargs"]["BLOCK_M"] == 32
