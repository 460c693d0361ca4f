"""What a call of a compiled model packs and runs: weights once, again when they change, nothing for nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import fastgraph.backend
from fastgraph.kernels.library import Op
from fastgraph.models import DeepLearningModel
from tests.compiled import spy
from tests.reference import random


@pytest.fixture(autouse=True)
def reset_dynamo() -> None:
    torch.compiler.reset()


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry each time that weights are packed."""
    made: list[Any] = []
    packed = Op.named("mlp")._packed
    original = packed._pack

    def pack(*arguments: Any) -> Any:
        made.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(packed, "_pack", pack)
    return made


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry each time that a fused op runs on packed weights."""
    ran: list[Any] = []
    original = fastgraph.backend.with_fast_path

    def with_fast_path(op: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        call = original(op)

        def counted(x: torch.Tensor) -> torch.Tensor:
            ran.append(op)
            return call(x)

        return counted

    monkeypatch.setattr(fastgraph.backend, "with_fast_path", with_fast_path)
    return ran


def chain() -> nn.Sequential:
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5)).eval()


def normed() -> nn.Sequential:
    torch.manual_seed(12)
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)).eval()


@pytest.mark.parametrize("model_of", [chain, normed])
def test_weights_are_packed_once(
    model_of: Callable[[], nn.Module], packings: list[Any], ran: list[Any], generator: torch.Generator
) -> None:
    compiled = torch.compile(model_of(), backend="fastgraph", fullgraph=True)
    x = random(generator, (3, 12))
    with torch.no_grad():
        for _ in range(10):
            compiled(x)
    assert len(packings) == 1
    assert len(ran) == 10


def _step(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight.add_(0.5)


def _load(model: nn.Module) -> None:
    model.load_state_dict({name: value * 2 + 1 for name, value in model.state_dict().items()})


def _assign(model: nn.Module) -> None:
    model.load_state_dict({name: value * 2 + 1 for name, value in model.state_dict().items()}, assign=True)


def _data(model: nn.Module) -> None:
    model[0].weight.data = model[0].weight.data * 3


def _replace(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach() * 3)


def _bias(model: nn.Module) -> None:
    model[0].bias = None


def _optimizer(model: nn.Module) -> None:
    model(torch.ones(2, 12)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()


def _to(model: nn.Module) -> None:
    model.double().float()
    _step(model)


def _statistics(model: nn.Module) -> None:
    if isinstance(model[1], nn.BatchNorm1d):
        model[1].running_var.mul_(4)
    else:
        _step(model)


CHANGES = [_step, _load, _assign, _data, _replace, _bias, _optimizer, _to, _statistics]


@pytest.mark.parametrize("model_of", [chain, normed])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_used(
    change: Callable[[nn.Module], None],
    model_of: Callable[[], nn.Module],
    ran: list[Any],
    generator: torch.Generator,
) -> None:
    model = model_of()
    compiled = torch.compile(model, backend="fastgraph")
    x = random(generator, (3, 12))
    with torch.no_grad():
        before = compiled(x)
    change(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
        assert not torch.allclose(compiled(x), before)
    assert len(ran) == 3


def test_a_computed_weight_is_packed_once_or_not_at_all(packings: list[Any], generator: torch.Generator) -> None:
    class Normalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(random(generator, (5, 12)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, F.normalize(self.weight))

    model, x = Normalized(), random(generator, (3, 12))
    compiled = torch.compile(model, backend="fastgraph", fullgraph=True)
    for grads in (True, False):
        with torch.set_grad_enabled(grads):
            for _ in range(10):
                torch.testing.assert_close(compiled(x), model(x))
    assert len(packings) <= 1
    with torch.no_grad():
        model.weight.mul_(-1)
        torch.testing.assert_close(compiled(x), model(x))


def test_an_input_is_no_weight(packings: list[Any], generator: torch.Generator) -> None:
    def scores(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return F.linear(query, keys)

    compiled = torch.compile(scores, backend="fastgraph", fullgraph=True)
    with torch.no_grad():
        for _ in range(3):
            query, keys = random(generator, (3, 12)), random(generator, (5, 12))
            assert torch.equal(compiled(query, keys), scores(query, keys))
    assert packings == []


def test_weights_that_change_in_every_call_are_not_packed_in_every_call(
    packings: list[Any], generator: torch.Generator
) -> None:
    model, x = chain(), random(generator, (3, 12))
    compiled = torch.compile(model, backend="fastgraph", fullgraph=True)
    with torch.no_grad():
        for _ in range(20):
            model[0].weight.mul_(0.9)
            torch.testing.assert_close(compiled(x), model(x))
        assert 1 <= len(packings) < 6
        packings.clear()
        for _ in range(5):
            torch.testing.assert_close(compiled(x), model(x))
        assert len(packings) == 1
        model[0].weight.mul_(2)
        torch.testing.assert_close(compiled(x), model(x))
        assert len(packings) == 2


def test_weights_without_a_version_stay_in_eager(packings: list[Any], generator: torch.Generator) -> None:
    with torch.inference_mode():
        model, x = chain(), random(generator, (3, 12))
        compiled = torch.compile(model, backend="fastgraph", fullgraph=True)
        assert torch.equal(compiled(x), model(x))
        model[0].weight.mul_(2)
        assert torch.equal(compiled(x), model(x))
    assert packings == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_dtypes_without_a_kernel_stay_as_they_are(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    seen = spy(monkeypatch)
    model, x = chain().to(dtype), random(generator, (3, 12)).to(dtype)
    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend="fastgraph")(x), model(x))
    assert seen.take() == []


def test_gradients_are_followed_when_they_are_switched_on(ran: list[Any], generator: torch.Generator) -> None:
    model, x = chain().requires_grad_(False), random(generator, (3, 12))
    compiled = torch.compile(model, backend="fastgraph", fullgraph=True)
    assert not compiled(x).requires_grad
    assert len(ran) == 1
    model[2].weight.requires_grad_()
    compiled(x).sum().backward()
    assert model[2].weight.grad.abs().max() > 0
    assert len(ran) == 1


def test_observed_calls_see_the_operators(ran: list[Any], generator: torch.Generator) -> None:
    """Where dynamo itself does not step aside."""

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func)
            return func(*args, **(kwargs or {}))

    def backend(graph_module: Any, example_inputs: Any) -> Any:
        graph = fastgraph.backend.fastgraph_backend(graph_module, example_inputs)

        def observed(*inputs: Any) -> Any:
            with Operators():
                return graph(*inputs)

        return observed

    called: list[Any] = []
    model, x = chain(), random(generator, (3, 12))
    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend=backend)(x), model(x))
    assert called.count(torch.ops.aten.addmm.default) == 2
    assert ran == []


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own
def test_tangents_reach_a_compiled_model(generator: torch.Generator) -> None:
    model, x = chain(), random(generator, (3, 12))
    compiled = torch.compile(model, backend="fastgraph")
    with torch.no_grad():
        compiled(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x.cos())
        ours, theirs = (forward_ad.unpack_dual(f(dual)).tangent for f in (compiled, model))
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs)


def test_every_batch(ran: list[Any], generator: torch.Generator) -> None:
    model = chain()
    for dynamic in (None, True, False):
        torch.compiler.reset()
        compiled = torch.compile(model, backend="fastgraph", fullgraph=True, dynamic=dynamic)
        with torch.no_grad():
            for batch in (2, 3, 17, 1, 0):
                x = random(generator, (batch, 12))
                torch.testing.assert_close(compiled(x), model(x))
    assert len(ran) == 15


def test_sizes_and_numbers_among_the_arguments(ran: list[Any], generator: torch.Generator) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = chain()

        def forward(self, x: torch.Tensor, factor: float, rows: int, *, shift: torch.Tensor | None = None) -> Any:
            y = self.body(x.reshape(rows, -1)) * factor
            return {"y": y if shift is None else y + shift, "rows": rows, "size": x.shape[0] * 2}

    model = Scaled()
    compiled = torch.compile(model, backend="fastgraph", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for factor, rows, shift in ((2.0, 3, None), (0.5, 4, torch.ones(5)), (3.5, 7, None)):
            x = random(generator, (rows, 12))
            ours, theirs = (f(x, factor, rows, shift=shift) for f in (compiled, model))
            torch.testing.assert_close(ours, theirs)
    assert len(ran) == 3


def test_several_threads(generator: torch.Generator) -> None:
    from tests.reference import in_threads

    model, x = chain(), random(generator, (3, 12))
    compiled = torch.compile(model, backend="fastgraph", fullgraph=True)
    with torch.no_grad():
        expected = compiled(x)
    results: list[Any] = []

    def work(_: int) -> None:
        with torch.no_grad():
            results.extend(compiled(x) for _ in range(20))

    in_threads(4, work)
    assert len(results) == 80
    assert all(torch.equal(result, expected) for result in results)


MODES = [None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_torch_compile(mode: str | None, ran: list[Any], generator: torch.Generator) -> None:
    model, x = chain(), random(generator, (3, 12))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="fastgraph", mode=mode)(x), model(x))
    assert len(ran) == 1


def test_options_of_torch_compile(ran: list[Any], generator: torch.Generator) -> None:
    model, x = chain(), random(generator, (3, 12))
    for options in ({}, {"epilogue_fusion": True}, {"max_autotune": False, "triton.cudagraphs": False}):
        torch.compiler.reset()
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(model, backend="fastgraph", options=options)(x), model(x))
    assert len(ran) == 3


def test_unknown_modes_and_options_are_named() -> None:
    model, x = chain(), torch.ones(3, 12)
    with pytest.raises(Exception, match="mode: needs one of default, .*, got 'fastest'"):
        torch.compile(model, backend="fastgraph", mode="fastest")(x)
    torch.compiler.reset()
    with pytest.raises(Exception, match="options: needs options of torch.compile's default backend, got 'speed'"):
        torch.compile(model, backend="fastgraph", options={"speed": 11})(x)


def test_nothing_is_looked_for_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph runs as dynamo gave it."""
    seen = spy(monkeypatch)
    compiled = torch.compile(lambda x: torch.relu(x) * 2, backend="fastgraph", fullgraph=True)
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 2.0))
    assert seen.graphs == 1
    assert seen.take() == []


def test_a_compiled_model_is_not_kept_alive(generator: torch.Generator) -> None:
    import gc
    import weakref

    model = DeepLearningModel().eval()
    with torch.no_grad():
        torch.compile(model, backend="fastgraph")(random(generator, (2, 784)))
    weight = weakref.ref(model.layer1.weight)
    del model
    torch.compiler.reset()
    gc.collect()
    assert weight() is None
