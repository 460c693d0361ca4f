"""Every backend computes the right thing on a small model and says where it ran."""

import importlib.util

import pytest
import torch
from torch import nn

from fastgraph.bench.backends import BACKENDS, BASELINE, OURS, Setting
from fastgraph.bench.cases import Built
from fastgraph.bench.check import complaint, reference

WHERE = {
    "eager": "cpu",
    "compile": "cpu, inductor",
    "compile-frozen": "cpu, inductor, frozen",
    "compile-max": "cpu, inductor, frozen",
    "aotinductor": "cpu, inductor ahead of time",
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime-ours": "CPUExecutionProvider",
    "openvino": "CPU, f32, 1 threads",
    "fastgraph": "cpu, mlp (",
    "fastgraph-inductor": "cpu, mlp (",
    "fastgraph-compile": "cpu, ",
}


@pytest.fixture(scope="module")
def built() -> Built:
    torch.manual_seed(20)
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10), nn.Softmax(dim=1)).eval()
    return Built(model, torch.randn(3, 24))


@pytest.fixture(autouse=True)
def fresh_compiler() -> object:
    """max-autotune freezes by a setting of the whole process, which in the bench is its own."""
    import torch._inductor.config as inductor

    before = inductor.freezing
    yield
    inductor.freezing = before
    torch.compiler.reset()


@pytest.mark.parametrize("name", list(BACKENDS))
def test_backend_is_right_and_says_where_it_ran(name: str, built: Built) -> None:
    if name == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    setting, backend = Setting(threads=1), BACKENDS[name]()
    assert backend.refusal(setting) is None
    backend.prepare(built.model, built.x, setting)
    with torch.inference_mode():
        output = backend.run(built.x)
        truth = reference(built, setting)
        assert complaint(output, "float32", truth, setting) is None
        assert backend.ran_on().startswith(WHERE[name])
        if backend.any_batch:
            other = Built(built.model, torch.randn(7, 24))
            assert complaint(backend.run(other.x), "float32", reference(other, setting), setting) is None


def test_names_are_stable() -> None:
    assert list(BACKENDS) == [
        "eager", "compile", "compile-frozen", "compile-max", "aotinductor", "onnxruntime", "onnxruntime-ours",
        "openvino", "fastgraph", "fastgraph-inductor", "fastgraph-compile",
    ]  # fmt: skip
    assert (BACKENDS[BASELINE].name, BACKENDS[OURS].name) == ("eager", "fastgraph")
    assert len({one.name for one in BACKENDS.values()}) == len(BACKENDS)


def test_fastgraph_in_bf16_gives_what_was_given(built: Built) -> None:
    setting, backend = Setting("bf16", 1), BACKENDS[OURS]()
    backend.prepare(built.model, built.x, setting)
    with torch.inference_mode():
        output = backend.run(built.x)
    assert output.dtype == torch.float32
    assert complaint(output, "float32", reference(built, setting), setting) is None


@pytest.mark.parametrize(
    ("name", "options", "freezing"),
    [
        ("compile", {}, False),
        ("compile-frozen", {}, True),
        ("compile-max", {"mode": "max-autotune"}, True),
        ("fastgraph-compile", {"backend": "fastgraph"}, False),
    ],
)
def test_compilers_get_their_options(
    name: str, options: dict[str, str], freezing: bool, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    given: list[dict[str, str]] = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: given.append(options))
    inductor.freezing = False
    BACKENDS[name]().prepare(built.model, built.x, Setting())
    assert given == [options]
    assert inductor.freezing is freezing


def test_what_runs_our_kernels_says_so() -> None:
    ours = [name for name, one in BACKENDS.items() if one.is_ours]
    assert ours == ["fastgraph", "fastgraph-inductor", "fastgraph-compile"]
