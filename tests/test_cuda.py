"""The engine on CUDA: what can be proven without a GPU, and what waits for one (marked `cuda`)."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastgraph
from bench import cli
from bench.targets import DEEP_RATIO, NET_RATIO
from fastgraph import cuda
from fastgraph.models import DeepLearningModel, Net
from kernels.cuda import choices
from tests.gpu import stand_in_gpu
from tests.reference import assert_close_to_reference, in_threads, random, scaled

BATCHES = {  # those of the bench, none, and as many as a whole chain in one launch takes
    DeepLearningModel: sorted({0, *DEEP_RATIO, *cli.BATCHES["deep"], *cli.MODE_BATCHES["offline"]["deep"], 20000}),
    Net: sorted({0, *NET_RATIO, *cli.BATCHES["net"], *cli.MODE_BATCHES["offline"]["net"]}),
}
WARM_UPS = 3  # calls of one shape until Inductor replays a CUDA graph: compiled, recorded (which waits), replayed


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """No choices that somebody measured."""
    monkeypatch.setenv("FASTGRAPH_CUDA_CHOICES", str(tmp_path / "choices.json"))
    choices.table.cache_clear()
    yield
    choices.table.cache_clear()


# ---- without a GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_a_cuda_device_that_is_not_there_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in_gpu(monkeypatch):
        x = torch.empty(1, 784, device="cuda")
    message = "example_inputs: on cuda:0, but PyTorch finds no CUDA GPU on this machine"
    with pytest.raises(RuntimeError, match=message):
        fastgraph.optimize(DeepLearningModel().eval(), (x,))


def captured_on(
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    model: nn.Module,
    shape: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> Any:
    """The optimized module of a model on a stand-in GPU, not run."""
    from fastgraph.capture import capture

    monkeypatch.setattr("fastgraph.capture.check_available", lambda device, what: None)
    with stand_in_gpu(monkeypatch, architecture):
        fake = copy.deepcopy(model)
        for module in fake.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = nn.Parameter(torch.empty(p.shape, device="cuda"))
        captured = capture(fake.eval(), (torch.empty(shape, device="cuda"),))
        optimized = fastgraph.OptimizedModule(captured, dtype=dtype, engine="auto")
        return optimized, optimized.explain()


def test_explain_names_kernels_and_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    module, table = captured_on(monkeypatch, "sm_90", DeepLearningModel(), (2, 784))
    assert module.engine == "inductor"
    plan = "a kernel a layer, one launch from 16384 rows on (default, not measured)"
    assert {row.kernel for row in table} == {f"mlp (Triton, sm_90, ieee: {plan})"}
    assert "engine: inductor (torch.compile, mode reduce-overhead); measured choices: " in table.notes[0]
    _, table = captured_on(monkeypatch, "sm_90", Net(), (2, 3, 720, 480))
    assert {row.kernel for row in table} == {"conv_pool_mlp (Triton, sm_90, ieee: one launch (default, not measured))"}


def test_explain_says_why_a_wide_model_is_not_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1000))
    _, table = captured_on(monkeypatch, "sm_90", wide, (2, 8))
    assert {row.kernel for row in table} == {"mlp (Triton, sm_90, ieee: a kernel a layer)"}
    reason = "not one launch: 1000 features (one launch keeps up to 256 behind the first layer)"
    assert {row.reason for row in table} == {reason}


OLD = "compute capability 6.1 is older than 7.5"


@pytest.mark.parametrize("reason", ["Triton is not installed", OLD])
def test_without_triton_aten_runs_and_explain_says_why(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the direct engine: Inductor could not compile there."""
    from kernels.cuda import target

    if reason != OLD:
        monkeypatch.setattr(target, "has_triton", lambda: False)
    gpu = OLD if reason == OLD else "sm_90"
    module, table = captured_on(monkeypatch, gpu, DeepLearningModel(), (2, 784))
    assert {row.kernel for row in table} == {"mlp (ATen)"}
    assert {row.reason for row in table} == {reason}
    assert module.engine == "direct"
    assert "engine: direct" in str(table)


def test_a_dtype_without_kernels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module, table = captured_on(monkeypatch, "sm_75", DeepLearningModel(), (2, 784), torch.float16)
    assert {row.kernel for row in table if row.kernel != "ATen"} == {"mlp (ATen)"}
    assert {row.reason for row in table} == {"float16 on sm_75"}
    assert module.engine == "inductor"


def test_results_are_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA graphs write over their results; `compiled` hands out copies. Here on the CPU, in another mode."""
    monkeypatch.setitem(cuda.MODES, "inductor", "default")
    module = fastgraph.optimize(nn.ReLU(), (torch.zeros(2),))
    call = cuda.compiled(module, module.rewritten.graph_module, "inductor")
    x = torch.ones(3)
    first, second = call(x), call(x)
    first[0].zero_()
    assert second[0].tolist() == [1.0, 1.0, 1.0]
    assert call(torch.ones(5))[0].shape == (5,)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_compiled_weights_are_never_stale(
    dtype: torch.dtype | None, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor's results on the CPU, with casts and folded batch-norm computed before; no call compiles anew."""
    monkeypatch.setitem(cuda.MODES, "inductor", "default")
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5)).eval()
    module = fastgraph.optimize(model, (torch.zeros(2, 2, 5, 5),), dtype=dtype)
    call = cuda.compiled(module, module.rewritten.graph_module, "inductor")
    x = random(generator, (3, 2, 5, 5))
    for _ in range(2):
        with torch.no_grad():
            (actual,) = call(x)
            torch.testing.assert_close(actual, module(x), rtol=1e-5 if dtype is None else 2e-2, atol=1e-2)
            for p in model.parameters():
                p.add_(0.5)


def test_every_thread_has_memory_for_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocator belongs to a thread; Inductor sets none where another thread has launched the kernel before."""
    from triton.runtime import _allocation

    monkeypatch.setattr(torch, "compile", lambda graph_module, **options: graph_module)
    module = fastgraph.optimize(nn.ReLU(), (torch.zeros(2),))
    call = cuda.compiled(module, module.rewritten.graph_module, "inductor")
    found: list[bool] = []

    def work(index: int) -> None:
        before = _allocation._allocator.get()
        call(torch.zeros(3))
        found.append(isinstance(before, _allocation.NullAllocator) and _allocation._allocator.get() is not before)

    in_threads(2, work)
    assert found == [True, True]


def test_a_graph_that_writes_to_its_buffers_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return x + self.count

    monkeypatch.setattr(torch, "compile", lambda graph_module, **options: graph_module)
    module = fastgraph.optimize(Counter(), (torch.zeros(2),), verify=False)
    call = cuda.compiled(module, module.rewritten.graph_module, "inductor")
    with torch.no_grad():
        assert [call(torch.zeros(1))[0].item() for _ in range(3)] == [1.0, 2.0, 3.0]
    assert module.count.item() == 3.0


def test_measuring_reaches_every_fused_op(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned: list[tuple[str, list[int]]] = []
    monkeypatch.setattr(cuda.dispatch, "tune", lambda name, arguments: tuned.append((name, list(arguments[0].shape))))
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 4)).eval()
    fast = fastgraph.optimize(model, (torch.zeros(2, 6),))
    x = torch.ones(3, 6)
    with torch.no_grad():
        (y,) = cuda.Tuner(fast.rewritten.graph_module).run(x)
        torch.testing.assert_close(y, model(x))
    assert tuned == [("mlp", [3, 6]), ("mlp", [3, 5])]


def test_max_autotune_on_the_cpu_is_inductors(generator: torch.Generator) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU()).eval()
    fast = fastgraph.optimize(model, (torch.zeros(2, 6),), engine="max-autotune")
    x = random(generator, (3, 6))
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
    assert choices.table() == {}


# ---- on a GPU


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


@pytest.mark.cuda
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


@pytest.mark.cuda
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


@pytest.mark.cuda
def test_gradients(generator: torch.Generator) -> None:
    model = on_gpu(DeepLearningModel)
    x = random(generator, (16, 784)).cuda()
    fast = fastgraph.optimize(copy.deepcopy(model), (x,))
    for module in (fast, model):
        module(x)[:, 3].sum().backward()
    for ours, theirs in zip(fast.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.cuda
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


@pytest.mark.cuda
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


@pytest.mark.cuda
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


@pytest.mark.cuda
def test_several_devices(generator: torch.Generator) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA GPU on this machine")
    x = random(generator, (16, 784))
    for index in (1, 0):
        model = on_gpu(DeepLearningModel).to(f"cuda:{index}")
        fast = fastgraph.optimize(model, (x.to(f"cuda:{index}"),))
        assert check(fast, model, x.to(f"cuda:{index}")).device.index == index


@pytest.mark.cuda
def test_tensors_on_different_devices() -> None:
    fast = fastgraph.optimize(on_gpu(DeepLearningModel), (torch.zeros(2, 784, device="cuda"),), engine="direct")
    with torch.no_grad(), pytest.raises(RuntimeError, match="needs the device of weights, cuda:0, got cpu"):
        fast(torch.zeros(2, 784))


@pytest.mark.cuda
def test_autocast_is_eagers(generator: torch.Generator) -> None:
    model = on_gpu(DeepLearningModel)
    x = random(generator, (16, 784)).cuda()
    fast = fastgraph.optimize(model, (x,))
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(fast(x), model(x))


@pytest.mark.cuda
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


@pytest.mark.cuda
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


@pytest.mark.cuda
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


@pytest.mark.cuda
def test_max_autotune_measures_and_keeps(generator: torch.Generator) -> None:
    model = on_gpu(DeepLearningModel)
    x = random(generator, (16, 784)).cuda()
    fast = fastgraph.optimize(model, (x,), engine="max-autotune")
    check(fast, model, x)
    assert "measured: " in str(fast.explain())
    assert choices.path().exists()
    assert {key.split()[0] for key in choices.table()} == {"linear", "mlp"}


@pytest.mark.cuda
def test_nan_and_infinities_go_where_eager_sends_them(generator: torch.Generator) -> None:
    for model_type in BATCHES:
        model = on_gpu(model_type)
        x = random(generator, (2, *model_type.input_shape[1:])).cuda()
        x.view(-1)[[5, 700, 900]] = torch.tensor([float("nan"), float("inf"), float("-inf")], device="cuda")
        fast = fastgraph.optimize(model, (torch.zeros_like(x),), engine="direct")
        check(fast, model, x)
