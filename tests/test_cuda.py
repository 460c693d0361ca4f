"""The engine on CUDA: what can be proven without a GPU. tests/test_cuda_on_gpu.py has what waits for one."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fastgraph
from fastgraph import cuda
from fastgraph.kernels.cuda import choices
from fastgraph.models import DeepLearningModel, Net
from tests.gpu import stand_in_gpu
from tests.reference import in_threads, random

pytestmark = pytest.mark.usefixtures("own_table")


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
        optimized = fastgraph.OptimizedModule(fake, [captured], dtype=dtype, engine="auto")
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
    from fastgraph.kernels.cuda import target

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
