"""optimize and OptimizedModule: the promises that a user relies on."""

import copy
import gc
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import fastgraph
from fastgraph.models import DeepLearningModel, Net
from kernels import native
from tests.reference import assert_close_to_reference, in_threads, random


def scaled(model: nn.Module, gain: float = 3.0) -> nn.Module:
    """Larger weights than the default initialisation, whose outputs hardly depend on the input."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(gain)
    return model.eval()


@pytest.fixture
def deep() -> nn.Module:
    torch.manual_seed(5)
    return scaled(DeepLearningModel())


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(6)
    return scaled(Net())


@pytest.mark.parametrize("batch", [0, 1, 2, 16, 77])
def test_deep_learning_model(batch: int, deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(1, 784),))
    x = random(generator, (batch, 784))
    with torch.no_grad():
        exact = copy.deepcopy(deep).double()(x.double())
        assert_close_to_reference(fast(x), deep(x), exact)
    assert batch < 2 or exact.std() > 0.1


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_net(batch: int, net: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(net, (torch.zeros(1, 3, 720, 480),))
    x = random(generator, (batch, 3, 720, 480))
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double())
        for image in (x, x.to(memory_format=torch.channels_last)):  # eager's view takes the first only
            assert_close_to_reference(fast(image), net(x), exact)
    assert batch == 0 or exact.std() > 0.01


def test_explain_shows_one_fused_op(deep: nn.Module, net: nn.Module) -> None:
    for model, shape, op, operators in ((deep, (1, 784), "mlp", 6), (net, (1, 3, 720, 480), "conv_pool_mlp", 10)):
        explanation = fastgraph.optimize(model, (torch.zeros(shape),)).explain()
        assert len(explanation) == operators
        assert len({row.becomes for row in explanation}) == 1
        assert {row.kernel.split(" ")[0] for row in explanation} == {op}
        assert op in str(explanation)
        assert "verified on the example inputs" in str(explanation)


def test_explain_gives_the_reason_of_a_refusal() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.MaxPool2d(2)).eval()
    rows = {row.node: row for row in fastgraph.optimize(model, (torch.zeros(1, 3, 9, 9),)).explain()}
    assert rows["max_pool2d"].reason == "by rule relu_after_pool; not conv_pool: groups=3 (the kernel takes 1)"
    assert rows["conv2d"].kernel == "ATen"


# ---- stale weights


def step(fast: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.1, momentum=0.9)
    (fast(x) - torch.ones(len(x), 10)).square().sum().backward()
    optimizer.step()


def load_state(fast: nn.Module, x: torch.Tensor) -> None:
    fast.load_state_dict({name: t * 1.5 for name, t in fast.state_dict().items()})


def assign_state(fast: nn.Module, x: torch.Tensor) -> None:
    fast.load_state_dict({name: t * 1.5 for name, t in fast.state_dict().items()}, assign=True)


def replace_parameter(fast: nn.Module, x: torch.Tensor) -> None:
    fast.layer2.weight = nn.Parameter(fast.layer2.weight.detach() * 2)


def half_and_back(fast: nn.Module, x: torch.Tensor) -> None:
    fast.half().float()


def in_place(fast: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        fast.layer1.bias.add_(1)


@pytest.mark.parametrize("change", [step, load_state, assign_state, replace_parameter, half_and_back, in_place])
def test_weights_are_never_stale(change, deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    x = random(generator, (5, 784))
    with torch.no_grad():
        before = fast(x)
    change(fast, x)
    with torch.no_grad():
        eager = torch.func.functional_call(DeepLearningModel(), dict(fast.state_dict()), (x,))
        torch.testing.assert_close(fast(x), eager, rtol=1e-5, atol=1e-6)
        assert not torch.equal(fast(x), before)


def test_training_either_is_seen_by_both(deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    x = random(generator, (5, 784))
    assert [p.data_ptr() for p in fast.parameters()] == [p.data_ptr() for p in deep.parameters()]
    assert list(fast.state_dict()) == list(deep.state_dict())
    with torch.no_grad():
        fast(x)
    step(deep, x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), deep(x), rtol=1e-5, atol=1e-6)


def test_gradients_equal_eager_after_a_training_step_on_net(generator: torch.Generator) -> None:
    torch.manual_seed(3)
    net = scaled(Net(), 1.5)
    eager, fast = copy.deepcopy(net), fastgraph.optimize(net, (torch.zeros(1, 3, 720, 480),))
    x, labels = random(generator, (1, 3, 720, 480)), torch.rand(5728, 1, generator=generator)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.001, momentum=0.9) for m in (eager, fast)]
    for model, optimizer in zip((eager, fast), optimizers, strict=True):
        (model(x) - labels).sum().backward()
        optimizer.step()
    for ours, theirs in zip(fast.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4 * theirs.grad.abs().max().item())
        assert theirs.grad.abs().max() > 0
    with torch.no_grad():
        torch.testing.assert_close(fast(x), eager(x), rtol=1e-4, atol=1e-5)


def test_gradients_of_the_input(deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    inputs = [random(generator, (3, 784)).requires_grad_() for _ in range(2)]
    inputs[1].data = inputs[0].data
    for p in deep.parameters():
        p.requires_grad_(False)
    for model, x in zip((fast, deep), inputs, strict=True):
        model(x)[:, 3].sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


# ---- bad input: the same kind of error as eager, naming the argument


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(784), r"x: needs a tensor of 2 dimensions, \[\*, 784\], got \[784\]"),
        (torch.ones(2, 3, 784), r"x: needs a tensor of 2 dimensions, \[\*, 784\], got \[2, 3, 784\]"),
        (torch.ones(2, 783), r"needs x.shape\[1\] == 784, got x of shape \[2, 783\]"),
        (torch.ones(2, 784).double(), "input: needs the dtype of weights, torch.float32, got torch.float64"),
        (torch.ones(2, 784, dtype=torch.int64), "input: needs a floating-point dtype, got torch.int64"),
        (torch.ones(2, 784, dtype=torch.bool), "input: needs a floating-point dtype, got torch.bool"),
        (torch.ones(2, 784, device="meta"), "input: needs the device of weights, cpu, got meta"),
    ],
    ids=["rank 1", "rank 3", "features", "double", "integer", "bool", "device"],
)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_bad_input(x: torch.Tensor, message: str, grad: bool, deep: nn.Module) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    with torch.set_grad_enabled(grad):
        fast(torch.ones(2, 784))
        with pytest.raises(RuntimeError, match=message):
            fast(x)
        assert fast(torch.ones(2, 784)).shape == (2, 10)


@pytest.mark.parametrize("x", [None, 3, [1.0], "x"])
def test_what_is_no_tensor(x, deep: nn.Module) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    with pytest.raises(TypeError, match="needs "):
        fast(x)


def test_wrong_arguments_of_optimize(deep: nn.Module) -> None:
    with pytest.raises(ValueError, match="engine: needs one of auto, direct, inductor, max-autotune, got 'turbo'"):
        fastgraph.optimize(deep, (torch.zeros(1, 784),), engine="turbo")
    with pytest.raises(ValueError, match="dtype: needs one of torch.float32, .*, got torch.int8"):
        fastgraph.optimize(deep, (torch.zeros(1, 784),), dtype=torch.int8)


# ---- a good citizen of PyTorch


def test_any_module_comes_through(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    cases = [
        (torchvision.models.resnet18(), (1, 3, 64, 64), {"conv_pool", "mlp"}),
        (torchvision.models.mobilenet_v3_small(), (2, 3, 64, 64), {"mlp"}),
        (
            nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(216, 10)),
            (4, 1, 16, 16),
            {"conv_pool", "mlp"},
        ),
        (nn.Conv1d(3, 4, 3), (2, 3, 10), set()),
        (encoder, (2, 5, 16), {"mlp"}),
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
    assert "not verified" in str(fast.explain())
    before = fast.calls.item()
    with torch.no_grad():
        counts = [fast(torch.ones(2, 4))[1].item() for _ in range(3)]
    assert counts == [2 * (before + i) for i in (1, 2, 3)]


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


def test_copies_have_their_own_weights_and_pickling_points_to_save(deep: nn.Module, generator: torch.Generator) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    x = random(generator, (3, 784))
    with torch.no_grad():
        before = fast(x)
        copied = copy.deepcopy(fast)
        copied.layer1.weight.mul_(2)
        assert not torch.equal(copied(x), before)
        assert torch.equal(fast(x), before)
    with pytest.raises(TypeError, match="fastgraph.save"):
        pickle.dumps(fast)


def test_train_mode() -> None:
    plain = fastgraph.optimize(nn.Linear(3, 2), (torch.ones(1, 3),))
    assert plain.train().training
    norm = fastgraph.optimize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), (torch.ones(1, 3, 2, 2),))
    assert not norm.training
    with pytest.raises(RuntimeError, match="train: batch_norm is captured in eval mode"):
        norm.train()
    assert not norm.eval().training


def test_eight_threads_and_a_writer(deep: nn.Module, generator: torch.Generator) -> None:
    """Threads that call while another changes weights get one state or the other, never a crash."""
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    x = random(generator, (4, 784))
    with torch.no_grad():
        results = [fast(x)]
        fast.layer3.bias.add_(3 * torch.arange(10))
        results.append(fast(x))
    wrong: list[int] = []

    def work(thread: int) -> None:
        with torch.no_grad():
            for _ in range(50):
                y = fast(x)
                if not any(torch.equal(y, r) for r in results):
                    wrong.append(thread)

    in_threads(8, work)
    assert wrong == []


def test_packed_once_and_no_growth(deep: nn.Module) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    x = torch.zeros(3, 784)
    with torch.no_grad():
        fast(x)
        state = fast._state
        for batch in (1, 3, 64, 3):
            fast(torch.zeros(batch, 784))
        assert fast._state is state
    assert state is not None
    packed = getattr(state.door, "_packed", None)
    if packed is not None:
        weights = sum(p.numel() * 4 for p in deep.parameters())
        assert packed.packed_bytes <= 1.1 * weights


AUDITED = """
import sys, torch, fastgraph
events = []
watched = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")
sys.addaudithook(lambda event, args: events.append(event) if event in watched else None)
for model in (fastgraph.models.DeepLearningModel(), fastgraph.models.Net()):
    x = torch.ones(model.input_shape)
    fast = fastgraph.optimize(model.eval(), (x,))
    with torch.no_grad():
        fast(x)
    fastgraph.save(fast, sys.argv[1])
    fastgraph.load(sys.argv[1])(x)
print(events)
import pickle, subprocess
pickle.loads(pickle.dumps(torch.Size)); subprocess.run(["true"])
print(sorted(set(events)))
"""


def test_no_compiler_no_network_no_pickle(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, str(tmp_path / "model")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.strip().splitlines()
    assert before == "[]"
    assert after == "['pickle.find_class', 'subprocess.Popen']"  # the hook does see them


@pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")
def test_direct_calls_pass_neither_dispatcher_nor_autograd(deep: nn.Module) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(1, 784),))
    x = torch.zeros(3, 784)
    with torch.no_grad(), torch.profiler.profile() as profile:
        fast(x)
        fast(x)
    names = {event.name for event in profile.events()}
    assert "aten::empty" in names
    assert "fastgraph::mlp" not in names
    with torch.profiler.profile() as profile:
        fast(x)
    assert "fastgraph::mlp" in {event.name for event in profile.events()}


@pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")
def test_a_call_costs_less_than_eagers_operators() -> None:
    """Six tiny layers: the kernel takes about a microsecond, the rest is the call; eager calls twelve operators."""
    model = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(8, 8), nn.ReLU()))).eval()
    x = torch.ones(1, 8)
    fast = fastgraph.optimize(model, (x,))

    def median(function: nn.Module) -> float:
        times = []
        for _ in range(2000):
            start = time.perf_counter()
            function(x)
            times.append(time.perf_counter() - start)
        return sorted(times)[1000]

    with torch.inference_mode():
        assert median(fast) < 0.7 * median(model)


def resident_kilobytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def test_memory_does_not_grow_with_calls(deep: nn.Module) -> None:
    fast = fastgraph.optimize(deep, (torch.zeros(2, 784),))
    x = torch.zeros(2, 784)
    with torch.no_grad():
        for _ in range(2000):
            fast(x)
        gc.collect()
        before = resident_kilobytes()
        for _ in range(20000):
            fast(x)
        gc.collect()
    assert resident_kilobytes() - before < 2000


def test_optimize_takes_under_two_seconds(deep: nn.Module, net: nn.Module) -> None:
    """The limit of the promise, with room for a busy machine: most of it is torch.export."""
    for model, shape in ((deep, (1, 784)), (net, (1, 3, 720, 480))):
        start = time.perf_counter()
        fastgraph.optimize(model, (torch.zeros(shape),))
        assert time.perf_counter() - start < 4
