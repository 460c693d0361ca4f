"""The engine on CUDA, on a GPU: skipped with one line where there is none."""

import copy

import pytest
import torch
from torch import nn

import fastgraph
from fastgraph.bench import cli
from fastgraph.bench.perf.targets import DEEP_RATIO, NET_RATIO
from fastgraph.kernels.cuda import choices
from fastgraph.models import DeepLearningModel, Net
from tests.reference import assert_close_to_reference, in_threads, random, scaled

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("own_table")]

BATCHES = {  # those of the bench, none, and as many as a whole chain in one launch takes
    DeepLearningModel: sorted({0, *DEEP_RATIO, *cli.BATCHES["deep"], *cli.MODE_BATCHES["offline"]["deep"], 20000}),
    Net: sorted({0, *NET_RATIO, *cli.BATCHES["net"], *cli.MODE_BATCHES["offline"]["net"]}),
}
WARM_UPS = 3  # calls of one shape until Inductor replays a CUDA graph: compiled, recorded (which waits), replayed


def on_gpu(model_type: type[nn.Module]) -> nn.Module:
    torch.manual_seed(5)
    return scaled(model_type()).cuda()


def check(fast: nn.Module, model: nn.Module, x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Against float64, with eager's error (in `dtype`) as the measure."""
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        low = model if dtype is None else copy.deepcopy(model).to(dtype)
        eager = low(x if dtype is None else x.to(dtype))
        actual = fast(x)
        assert_close_to_reference(actual.to(eager.dtype), eager, exact)
    return actual


@pytest.mark.parametrize("model_type", BATCHES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("engine", ["auto", "direct"])
def test_numbers_at_every_batch(
    model_type: type[nn.Module], dtype: torch.dtype | None, engine: str, generator: torch.Generator
) -> None:
    model = on_gpu(model_type)
    shape = model_type.input_shape[1:]
    fast = fastgraph.optimize(model, (torch.zeros(2, *shape, device="cuda"),), dtype=dtype, engine=engine)
    assert "Triton" in str(fast.explain())
    for batch in BATCHES[model_type]:
        check(fast, model, random(generator, (batch, *shape)).cuda(), dtype)


@pytest.mark.parametrize("precision", ["tf32x3", "tf32"])
def test_precisions(precision: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGRAPH_CUDA_FP32", precision)
    for model_type in BATCHES:
        model = on_gpu(model_type)
        x = random(generator, (16, *model_type.input_shape[1:])).cuda()
        fast = fastgraph.optimize(model, (x,), engine="direct", verify=False)
        assert precision in str(fast.explain())
        with torch.no_grad():
            error = (fast(x) - copy.deepcopy(model).double()(x.double())).abs().max()
        assert error < (1e-2 if precision == "tf32" else 1e-5)  # ten bits of mantissa; nearly fp32's own


def test_gradients(generator: torch.Generator) -> None:
    model = on_gpu(DeepLearningModel)
    x = random(generator, (16, 784)).cuda()
    fast = fastgraph.optimize(copy.deepcopy(model), (x,))
    for module in (fast, model):
        module(x)[:, 3].sum().backward()
    for ours, theirs in zip(fast.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_weights_are_never_stale(dtype: torch.dtype | None, generator: torch.Generator) -> None:
    """Nor their casts, which a recorded graph reads."""
    model = on_gpu(DeepLearningModel)
    x = random(generator, (16, 784)).cuda()
    fast = fastgraph.optimize(model, (x,), dtype=dtype)
    for _ in range(WARM_UPS):
        before = check(fast, model, x, dtype)
    with torch.no_grad():
        model.layer3.bias.add_(torch.arange(10.0, device="cuda"))
    assert not torch.equal(check(fast, model, x, dtype), before)


def test_capture_and_replay_by_the_user(generator: torch.Generator) -> None:
    model = on_gpu(DeepLearningModel)
    x = random(generator, (16, 784)).cuda()
    fast = fastgraph.optimize(model, (x,), engine="direct")
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        fast(x)
        with torch.cuda.graph(graph):
            y = fast(x)
        x.copy_(random(generator, (16, 784)))
        graph.replay()
        assert torch.equal(y, fast(x))


@pytest.mark.parametrize("engine", ["auto", "direct"])
def test_another_stream(engine: str, generator: torch.Generator) -> None:
    """The work is on the caller's stream: ordered behind what the caller put there, and not on the default stream."""
    model = on_gpu(DeepLearningModel)
    fast = fastgraph.optimize(model, (torch.zeros(16, 784, device="cuda"),), engine=engine)
    x = random(generator, (16, 784)).cuda()
    stream = torch.cuda.Stream()
    with torch.no_grad():
        for _ in range(WARM_UPS):
            expected = fast(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100_000_000)
            late = torch.zeros_like(x)
            torch.cuda._sleep(100_000_000)
            late.copy_(x)
            y = fast(late)
        assert not stream.query()
        stream.synchronize()
        assert torch.equal(y, expected)


def test_several_devices(generator: torch.Generator) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA GPU on this machine")
    x = random(generator, (16, 784))
    for index in (1, 0):
        model = on_gpu(DeepLearningModel).to(f"cuda:{index}")
        fast = fastgraph.optimize(model, (x.to(f"cuda:{index}"),))
        assert check(fast, model, x.to(f"cuda:{index}")).device.index == index


def test_tensors_on_different_devices() -> None:
    fast = fastgraph.optimize(on_gpu(DeepLearningModel), (torch.zeros(2, 784, device="cuda"),), engine="direct")
    with torch.no_grad(), pytest.raises(RuntimeError, match="needs the device of weights, cuda:0, got cpu"):
        fast(torch.zeros(2, 784))


def test_autocast_is_eagers(generator: torch.Generator) -> None:
    model = on_gpu(DeepLearningModel)
    x = random(generator, (16, 784)).cuda()
    fast = fastgraph.optimize(model, (x,))
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(fast(x), model(x))


@pytest.mark.parametrize("engine", ["auto", "direct"])
def test_no_synchronisation_inside_a_call(engine: str) -> None:
    x = torch.zeros(16, 784, device="cuda")
    fast = fastgraph.optimize(on_gpu(DeepLearningModel), (x,), engine=engine)
    with torch.no_grad():
        for _ in range(WARM_UPS):
            fast(x)
        torch.cuda.set_sync_debug_mode("error")
        try:
            fast(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("engine", ["auto", "direct"])
def test_memory_is_stable_over_ten_thousand_calls(engine: str) -> None:
    x = torch.zeros(16, 784, device="cuda")
    fast = fastgraph.optimize(on_gpu(DeepLearningModel), (x,), engine=engine)
    with torch.no_grad():
        for _ in range(10):
            fast(x)
        before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        for _ in range(10_000):
            fast(x)
        torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


@pytest.mark.parametrize("engine", ["auto", "direct"])
def test_threads(engine: str, generator: torch.Generator) -> None:
    model = on_gpu(DeepLearningModel)
    x = random(generator, (16, 784)).cuda()
    fast = fastgraph.optimize(model, (x,), engine=engine)
    with torch.no_grad():
        expected = fast(x)
    right: list[int] = []

    def work(index: int) -> None:
        with torch.no_grad():
            right.extend(index for _ in range(50) if torch.equal(fast(x), expected))

    in_threads(4, work)
    assert sorted(right) == [i for i in range(4) for _ in range(50)]  # a thread that fails adds nothing


def test_max_autotune_measures_and_keeps(generator: torch.Generator) -> None:
    model = on_gpu(DeepLearningModel)
    x = random(generator, (16, 784)).cuda()
    fast = fastgraph.optimize(model, (x,), engine="max-autotune")
    check(fast, model, x)
    assert "measured: " in str(fast.explain())
    assert choices.path().exists()
    assert {key.split()[0] for key in choices.table()} == {"linear", "mlp"}


def test_nan_and_infinities_go_where_eager_sends_them(generator: torch.Generator) -> None:
    for model_type in BATCHES:
        model = on_gpu(model_type)
        x = random(generator, (2, *model_type.input_shape[1:])).cuda()
        x.view(-1)[[5, 700, 900]] = torch.tensor([float("nan"), float("inf"), float("-inf")], device="cuda")
        fast = fastgraph.optimize(model, (torch.zeros_like(x),), engine="direct")
        check(fast, model, x)
