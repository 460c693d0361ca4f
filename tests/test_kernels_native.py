"""Which kernels run: FASTGRAPH_CPU, and a machine without the compiled library."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgraph.kernels import native
from fastgraph.kernels.native import CAPABILITIES, _choose
from tests.conftest import ISAS


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_best_vector_isa_is_the_default() -> None:
    assert native.cpu_capability() in CAPABILITIES
    assert _choose(None, ["avx512", "avx2", "scalar"]) == "avx512"
    assert _choose("", ["avx2", "scalar"]) == "avx2"
    assert _choose(None, ["scalar"]) == "aten"  # slower than ATen: only when asked for
    assert _choose(None, []) == "aten"
    assert _choose("scalar", ["avx2", "scalar"]) == "scalar"


@pytest.mark.parametrize("name", [*ISAS, "aten"])
def test_forced(name: str) -> None:
    code = """
import torch, fastgraph
from fastgraph.kernels import native
module = native.kernels()
y = torch.ops.fastgraph.mlp.default(torch.ones(2, 3), [torch.ones(4, 3)], [None], ["relu"])
print(fastgraph.cpu_capability(), module and module.isa(), y.sum().item())
"""
    done = python(code, FASTGRAPH_CPU=name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [name, "None" if name == "aten" else name, "24.0"]


def test_forcing_takes_effect_in_the_kernels() -> None:
    """The scalar kernels are slower by an order of magnitude: the choice reaches the code that computes."""
    if "avx2" not in ISAS:
        pytest.skip("this machine has no AVX2")
    code = """
import time, torch, fastgraph
torch.set_num_threads(1)
a = (torch.ones(256, 512), [torch.ones(512, 512)], [None], ["none"])
torch.ops.fastgraph.mlp.default(*a)
times = []
for _ in range(5):
    start = time.perf_counter(); torch.ops.fastgraph.mlp.default(*a); times.append(time.perf_counter() - start)
print(min(times))
"""
    times = {name: float(python(code, FASTGRAPH_CPU=name).stdout) for name in ("avx2", "scalar")}
    assert times["scalar"] > 3 * times["avx2"]


@pytest.mark.parametrize(
    ("name", "problem"), [("sse9", "is unknown"), ("AVX2", "is unknown"), ("avx512", "is not supported here")]
)
def test_a_capability_that_cannot_be_had_is_an_error_with_the_choices(name: str, problem: str) -> None:
    if name in ISAS:
        pytest.skip(f"this machine has {name}")
    done = python("import fastgraph", FASTGRAPH_CPU=name)
    assert done.returncode != 0
    choices = ", ".join([*ISAS, "aten"])
    assert done.stderr.strip().endswith(
        f"RuntimeError: FASTGRAPH_CPU: '{name}' {problem}; choices on this machine: {choices}"
    )


WITHOUT_LIBRARY = "import sys; sys.modules['fastgraph.kernels._native'] = None\n"


def test_without_the_compiled_library_everything_runs_through_aten_and_says_so_once() -> None:
    code = """
import torch, fastgraph
model = fastgraph.models.DeepLearningModel().eval()
x = torch.randn(3, 784)
fast = fastgraph.optimize(model, (x,))
with torch.no_grad():
    assert torch.equal(fast(x), model(x))
print(fastgraph.cpu_capability(), {row.kernel for row in fast.explain()})
"""
    done = python(WITHOUT_LIBRARY + code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "aten {'mlp (ATen, float32 on cpu)'}"
    assert done.stderr.count("fastgraph: no compiled kernels, running through ATen") == 1


def test_what_helps_where_there_are_no_kernels() -> None:
    """pip keeps the wheel that it built without a compiler; where there are no kernels a compiler does not help."""
    said = native._no_kernels("x86_64", "No module named '_native'")
    assert "(No module named '_native'); with a C++17 compiler" in said
    assert "pip install --no-cache-dir --force-reinstall --no-deps fastgraph" in said
    assert native._no_kernels("AMD64", "") == native._no_kernels("x86_64", "")
    said = native._no_kernels("aarch64", "No module named '_native'")
    assert said == "fastgraph: no compiled kernels for aarch64, they are for x86-64; running through ATen"


def test_without_the_compiled_library_an_isa_cannot_be_forced() -> None:
    done = python(WITHOUT_LIBRARY + "import fastgraph", FASTGRAPH_CPU="scalar")
    assert done.returncode != 0
    assert "'scalar' is not supported here; choices on this machine: aten" in done.stderr


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, as of quantization packages."""

    @staticmethod
    def __new__(cls, size: tuple[int, ...]) -> "Wrapper":
        return torch.Tensor._make_wrapper_subclass(cls, size)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


def made_in_inference_mode() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(2, 3)


PLAIN = torch.ones(2, 3)
NO_VERSION = "parameters made in inference_mode have no version: a change could not be seen"
IN_MEMORY = "a weight whose values are not in memory as they are (negated, or zeros) has no kernel on the CPU"
REFUSALS = [
    ([PLAIN.double()], "float64 has no kernel on the CPU"),
    ([PLAIN.half(), None], "float16 has no kernel on the CPU"),
    ([PLAIN, PLAIN.bfloat16()], "bfloat16 and float32 have no kernel on the CPU"),
    ([PLAIN.to("meta")], "a weight on meta has no kernel on the CPU"),
    ([PLAIN.to_sparse()], "a weight of layout torch.sparse_coo has no kernel on the CPU"),
    ([torch._neg_view(PLAIN)], IN_MEMORY),
    ([torch._efficientzerotensor((2, 3))], IN_MEMORY),
    ([Wrapper((2, 3))], "a weight of type Wrapper, with operators of its own, has no kernel on the CPU"),
    ([PLAIN, None, made_in_inference_mode()], NO_VERSION),
    ([None], "no weights have no kernel on the CPU"),
]


@pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")
@pytest.mark.parametrize(("weights", "reason"), REFUSALS)
def test_weights_that_are_refused(weights: list[torch.Tensor | None], reason: str) -> None:
    assert native.refusal(*weights) == reason
    assert not native.takes(*weights)


@pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels")
def test_weights_that_are_taken() -> None:
    class Subclass(torch.Tensor):
        pass

    mode, in_double = FakeTensorMode(), PLAIN.double()
    with mode:
        fakes = [mode.from_tensor(PLAIN), mode.from_tensor(made_in_inference_mode())]
        with torch.inference_mode():
            fakes.append(mode.from_tensor(PLAIN))
        double = mode.from_tensor(in_double)
    for weights in (
        [PLAIN, None],
        [PLAIN.bfloat16()],
        [torch.nn.Parameter(PLAIN)],
        [PLAIN.as_subclass(Subclass)],
        fakes,
    ):
        assert native.refusal(*weights) is None
        assert native.takes(*weights)
    assert native.refusal(double) == "float64 has no kernel on the CPU"


def test_all_weights_are_refused_where_calls_run_through_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_capability", "aten")
    assert native.refusal(PLAIN) == "no compiled kernels are in use (cpu_capability is aten)"
    assert not native.takes(PLAIN)


@pytest.mark.skipif(native.library() is None or platform.system() != "Linux", reason="no library, or no Linux")
def test_the_features_are_those_that_the_system_names() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    features = native.cpu_capability(details=True).features
    assert features
    assert {name for name, is_there in features.items() if is_there} == flags & features.keys()


@pytest.mark.parametrize("name", [*ISAS, "aten"])
def test_details_name_the_kernels_in_use(name: str) -> None:
    code = """
import fastgraph
details = fastgraph.cpu_capability(details=True)
print(details.capability, *(f"{f.name}:{f.row}" for f in details.families))
assert str(details).startswith(details.capability + "; the processor has "), str(details)
"""
    done = python(code, FASTGRAPH_CPU=name)
    assert done.returncode == 0, done.stderr
    capability, *families = done.stdout.split()
    assert capability == name
    rows = dict(family.split(":") for family in families)
    if name == "aten":
        assert not rows
        return
    dots = {"gemm_bf16", "conv_pool", "ceiling"}  # the families with a row for dot products
    fp32 = name.removesuffix("_bf16")
    families = ["gemm_f32", "gemm_bf16", "elementwise", "conv", "conv_pool", "depthwise", "conv_transpose", "pool"]
    families += ["upsample", "norm", "pointwise", "reduce", "ceiling"]
    assert rows == {f: name if f in dots else fp32 for f in families}


@pytest.mark.skipif("avx512_bf16" not in ISAS, reason="no bf16 dot products here")
def test_dot_products_are_used_where_they_are_measured_to_be_faster() -> None:
    code = """
import fastgraph
for f in fastgraph.cpu_capability(details=True).families:
    print(f.name, f.row, f.gain or 0)
"""
    done = python(code, FASTGRAPH_CPU="")
    assert done.returncode == 0, done.stderr
    families = {name: (row, float(gain)) for name, row, gain in map(str.split, done.stdout.splitlines())}
    for row, gain in (families["gemm_bf16"], families["conv_pool"]):
        assert 0.25 < gain < 4  # an instruction has two products where the other has one
        assert row == ("avx512_bf16" if gain > 1 else "avx512")
    assert families["gemm_f32"] == ("avx512", 0)
