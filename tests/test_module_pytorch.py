"""OptimizedModule among the rest of PyTorch: any module, modes, hooks, autocast, compile, export."""

import copy

import pytest
import torch
import torchvision
from torch import nn

import fastgraph
from tests.reference import assert_close_to_reference, random


def test_any_module_comes_through(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    cases = [
        (torchvision.models.resnet18(), (1, 3, 64, 64), {"conv_pool", "conv", "pointwise", "pool", "mlp"}),
        (torchvision.models.mobilenet_v3_small(), (2, 3, 64, 64), {"conv", "pointwise", "pool", "mlp"}),
        (
            nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(216, 10)),
            (4, 1, 16, 16),
            {"conv_pool", "mlp"},
        ),
        (nn.Conv1d(3, 4, 3), (2, 3, 10), {"conv"}),
        (encoder, (2, 5, 16), {"mlp", "norm", "pointwise"}),
    ]
    for model, shape, fused in cases:
        model = model.eval()
        x = random(generator, shape)
        fast = fastgraph.optimize(model, (x,))
        with torch.no_grad():
            exact = copy.deepcopy(model).double()(x.double())
            assert_close_to_reference(fast(x), model(x), exact)
            doubled = torch.cat([x, x])
            assert_close_to_reference(fast(doubled), model(doubled), torch.cat([exact, exact]))
        kernels = {row.kernel.split(" ")[0] for row in fast.explain()} - {"ATen", ""}
        assert kernels == fused, type(model)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.offset = torch.ones(4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.add_(1)
        return torch.relu(self.linear(x)) + self.offset, self.calls * 2


def test_buffers_that_the_model_writes_to() -> None:
    fast = fastgraph.optimize(Counter().eval(), (torch.ones(2, 4),))
    assert "verified on the example inputs" in str(fast.explain())
    assert fast.calls.item() == 0
    with torch.no_grad():
        counts = [fast(torch.ones(2, 4))[1].item() for _ in range(3)]
    assert counts == [2, 4, 6]


def test_results_do_not_alias_weights() -> None:
    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * 2 if x.shape[0] else x

    fast = fastgraph.optimize(Weights(), (torch.ones(2),))
    with torch.no_grad():
        fast(torch.ones(2)).zero_()
        assert fast(torch.ones(2)).tolist() == [2.0, 2.0, 2.0]


def test_modes_see_the_operators(deep: nn.Module) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    fast = fastgraph.optimize(deep, (torch.zeros(1, 784),))
    seen: list[str] = []
    with torch.no_grad():
        fast(torch.zeros(1, 784))
        with Record():
            fast(torch.zeros(1, 784))
    assert "fastgraph.mlp.default" in seen


def test_hooks_run(deep: nn.Module) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(1, 784),))
    called = []
    fast.register_forward_hook(lambda module, args, output: called.append(output.shape))
    with torch.no_grad():
        fast(torch.zeros(3, 784))
    assert called == [(3, 10)]


@pytest.mark.parametrize("kind", ["pre", "global", "global pre", "backward"])
def test_every_kind_of_hook_runs(kind: str, deep: nn.Module) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(1, 784),))
    register = {
        "pre": fast.register_forward_pre_hook,
        "global": nn.modules.module.register_module_forward_hook,
        "global pre": nn.modules.module.register_module_forward_pre_hook,
        "backward": fast.register_full_backward_hook,
    }[kind]
    called = []
    handle = register(lambda module, *_: called.append(module))
    try:
        fast(torch.zeros(3, 784, requires_grad=True)).sum().backward()
    finally:
        handle.remove()
    assert fast in called


def test_a_forward_of_the_instances_own_is_called(deep: nn.Module) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(1, 784),))
    with torch.no_grad():
        before = fast(torch.ones(2, 784))
        inner = fast.forward
        fast.forward = lambda x: inner(x) + 1
        assert torch.equal(fast(torch.ones(2, 784)), before + 1)


def test_compile_in_place(deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    x = random(generator, (3, 784))
    with torch.no_grad():
        before = fast(x)
        fast.compile(backend="aot_eager", fullgraph=True)
        torch._dynamo.utils.counters.clear()
        assert torch.equal(fast(x), before)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_autocast_is_eagers(deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(1, 784),))
    x = random(generator, (3, 784))
    with torch.no_grad():
        fast(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(fast(x), deep(x))


def test_fullgraph_compile_and_export_of_an_optimized_module(deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    x = random(generator, (3, 784))
    with torch.no_grad():
        compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), fast(x))
        program = torch.export.export(fast, (x,), dynamic_shapes=(({0: torch.export.Dim.AUTO},),), strict=False)
        assert torch.equal(program.module()(x[:2]), fast(x[:2]))


def test_inductor_engine_on_the_cpu(deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),), engine="inductor")
    direct = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    with torch.no_grad():
        for batch in (2, 5):
            x = random(generator, (batch, 784))
            assert torch.equal(fast(x), direct(x))
    assert "engine: inductor" in str(fast.explain())


@pytest.mark.parametrize("batch", [1, 2])
def test_attention_can_be_viewed_as_eagers(batch: int) -> None:
    """Eager's self-attention is contiguous where no gradient is wanted."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    fast = fastgraph.optimize(attention, (torch.zeros(batch, 3, 8),) * 3)
    with torch.no_grad():
        for x in (torch.randn(2, 3, 8), torch.randn(5, 3, 8)):
            eager, ours = attention(x, x, x)[0], fast(x, x, x)[0]
            assert ours.stride() == eager.stride()
            torch.testing.assert_close(ours.view(len(x), -1), eager.view(len(x), -1))
