"""The loop over blocks of rows: when it is made, and that nothing changes but the time."""

import copy
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NotImplemented_
from torch import Tensor, nn

import fastgraph
from fastgraph import export
from fastgraph.bench.cases import informative_net, variants
from fastgraph.data import photograph
from fastgraph.export import compare
from fastgraph.models import Net
from tests.reference import assert_close_to_reference


def written(
    model: nn.Module, inputs: tuple[Tensor, ...], path: Path, *, row_blocks: bool | None = True, **how: Any
) -> Path:
    export.to_onnx(fastgraph.optimize(model, inputs, verify=False), inputs, path, row_blocks=row_blocks, **how)
    return path


def operators(graph: onnx.GraphProto) -> list[str]:
    return [node.op_type for node in graph.node]


def branches(file: Path) -> dict[str, onnx.GraphProto]:
    """Of the file's one If."""
    (chosen,) = (node for node in onnx.load(file).graph.node if node.op_type == "If")
    return {attribute.name: attribute.g for attribute in chosen.attribute}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return informative_net()


@pytest.fixture(scope="module")
def file(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(net, (photograph(),), tmp_path_factory.mktemp("row_blocks") / "net.onnx", verify=True)


def test_the_loop_has_the_chain_and_so_has_the_other_branch(file: Path) -> None:
    chain = ["Conv", "MaxPool", "Relu", "Reshape", "Gemm", "Relu", "Gemm", "Relu", "Sigmoid"]
    found = branches(file)
    assert operators(onnx.load(file).graph) == [
        *("Shape", "GreaterOrEqual", "LessOrEqual", "And", "Squeeze", "If"),
    ]
    assert operators(found["else_branch"]) == chain
    (loop,) = (node for node in found["then_branch"].node if node.op_type == "Loop")
    body = operators(loop.attribute[0].g)
    assert body[3 : 3 + len(chain)] == chain
    onnx.checker.check_model(file, full_check=True)
    assert len(onnx.load(file).graph.initializer) == 7 + 2  # the weights, a shape; the widths that fit


@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 720, 480),
        (3, 3, 719, 479),  # the other width of 238 pooled places
        (2, 3, 105, 480),  # 51 rows in blocks of 25: a last block of one
        (5, 3, 7, 480),  # fewer rows than a block
        (20, 3, 40, 480),  # blocks of the least size
        (2, 3, 241, 100),  # rows of the MLP that are not pooled rows: the other branch
        (0, 3, 720, 480),
    ],
)
def test_same_numbers_in_either_branch(file: Path, net: nn.Module, shape: tuple[int, ...]) -> None:
    batch, _, height, width = shape
    x = variants(photograph(), max(batch, 1))[:batch, :, :height, :width].contiguous()
    (output,) = export.session(file).run(None, {"input": x.numpy()})
    with torch.inference_mode():
        assert_close_to_reference(torch.from_numpy(output), net(x), copy.deepcopy(net).double()(x.double()))


def test_what_is_too_small_is_refused_as_before(file: Path) -> None:
    for shape in ((1, 3, 2, 480), (1, 3, 720, 481)):
        with pytest.raises(Exception, match=r"Conv|Reshape"):
            export.session(file).run(None, {"input": torch.zeros(shape).numpy()})


class Chain(nn.Module):
    """A convolution, a pool, and a linear layer on rows of ``features``."""

    def __init__(
        self,
        conv: nn.Module | None = None,
        pool: nn.Module | None = None,
        *,
        features: int = 98,
        out: int = 3,
        also: bool = False,
    ) -> None:
        super().__init__()
        self.conv, self.pool = conv or nn.Conv2d(2, 16, 3), pool or nn.MaxPool2d(2)
        self.fc, self.also, self.features = nn.Linear(features, out), also, features

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        pooled = torch.relu(self.pool(self.conv(x)))
        rows = torch.tanh(self.fc(pooled.view(-1, self.features)))
        return (rows, pooled) if self.also else (rows,)


class Flat(Chain):
    """In one dimension, with the same operators."""

    def __init__(self) -> None:
        super().__init__(nn.Conv1d(2, 16, 3), nn.MaxPool1d(2))


class WithIndices(Chain):
    """Where each maximum was is a result too."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        pooled, places = nn.functional.max_pool2d(self.conv(x), 2, return_indices=True)
        return self.fc(pooled.view(-1, self.features)), places


class BiasForEachRow(Chain):
    """Not a row of the MLP like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.rand(2 * 16 * 319, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.addmm(self.bias, self.pool(self.conv(x)).view(-1, 98), self.fc.weight.t()),)


class Two(nn.Module):
    """Of the same input, and of another."""

    def __init__(self) -> None:
        super().__init__()
        self.chains = nn.ModuleList(Chain(out=1) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return tuple(chain(value)[0] for chain, value in zip(self.chains, (x, x, y), strict=True))


WINDOWS = Chain(
    nn.Conv2d(2, 16, (3, 5), (1, 2), dilation=(2, 1), groups=2), nn.MaxPool2d((3, 2), (2, 1)), features=196, out=1
)


@pytest.mark.parametrize(
    ("model", "size", "made"),
    [
        (Chain(), (2, 640, 198), 1),
        (WINDOWS, (2, 1000, 398), 1),
        (Two(), (2, 640, 198), 3),
        (Chain(), (2, 300, 198), 0),  # in the cache as a whole
        (Chain(nn.Conv2d(2, 16, 3, padding=1), features=99), (2, 640, 198), 0),
        (Chain(pool=nn.MaxPool2d(2, ceil_mode=True)), (2, 640, 198), 0),
        (Chain(also=True), (2, 640, 198), 0),  # the pooled values are a result too
        (Chain(out=300), (2, 640, 198), 0),  # more results to copy than the convolution has values
        (Chain(pool=nn.MaxPool2d((80, 2), (1, 2)), out=1), (2, 640, 198), 0),  # most of it would be computed twice
        (Flat(), (2, 198), 0),
        (WithIndices(), (2, 640, 198), 0),
        (BiasForEachRow(), (2, 640, 198), 0),
    ],
)
def test_which_chains_become_a_loop(model: nn.Module, size: tuple[int, ...], made: int, tmp_path: Path) -> None:
    inputs = tuple(torch.rand(2, *size) for _ in range(2 if isinstance(model, Two) else 1))
    verify = not isinstance(model, WithIndices)  # of two values as good as equal, either may be the maximum
    path = written(model.eval(), inputs, tmp_path / "chain.onnx", verify=verify)
    assert operators(onnx.load(path).graph).count("If") == made


@pytest.mark.parametrize("opset", [18, 25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_in_every_opset_and_in_a_model_of_float16(opset: int, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "chain.onnx"
    written(Chain().to(dtype).eval(), (torch.rand(2, 2, 640, 198, dtype=dtype),), path, verify=True, opset=opset)
    assert "If" in operators(onnx.load(path).graph)


def test_only_an_optimized_module_and_only_when_wanted(tmp_path: Path) -> None:
    photo = photograph()
    path = written(Net().eval(), (photo,), tmp_path / "flat.onnx", verify=False, row_blocks=False)
    assert "If" not in operators(onnx.load(path).graph)
    export.to_onnx(Net().eval(), (photo,), tmp_path / "plain.onnx", verify=False)
    assert "If" not in operators(onnx.load(tmp_path / "plain.onnx").graph)


@pytest.mark.parametrize(("loop_s", "plain_s", "made"), [(0.01, 0.02, 1), (0.02, 0.01, 0), (0.02, 0.02, 0)])
def test_by_default_the_faster_one_is_written(
    loop_s: float, plain_s: float, made: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Sessions take the time that is set here."""

    class Binding:
        def __init__(self, running: Any) -> None:
            self.seconds = loop_s if running == "loop" else plain_s

        def __call__(self, x: Tensor) -> None:
            assert x.shape == (2, 2, 640, 198)
            now[0] += self.seconds

    now = [0.0]
    monkeypatch.setattr(compare, "session", lambda data, **_: "loop" if b"If" in data else "plain")
    monkeypatch.setattr(compare, "Binding", Binding)
    monkeypatch.setattr(compare.time, "perf_counter", lambda: now[0])
    path = written(
        Chain().eval(), (torch.rand(2, 2, 640, 198),), tmp_path / "chain.onnx", row_blocks=None, verify=False
    )
    assert operators(onnx.load(path).graph).count("If") == made
    assert now[0] > 0, "nothing was measured"


def test_a_difference_that_is_not_in_three_of_four_rounds_is_none() -> None:
    """Once slower in three rounds: the lower quartile of the ratios is below 1."""
    assert compare._ratios([0.01] * 12, [0.02] * 12)[0] > 1
    assert compare._ratios([0.01] * 12, [0.02, 0.02, 0.005] * 4)[0] < 1


def test_what_is_measured_and_written_is_right(net: nn.Module, tmp_path: Path) -> None:
    x = photograph()[:, :, :200]
    path = written(net, (x,), tmp_path / "measured.onnx", row_blocks=None)
    (output,) = export.session(path).run(None, {"input": x.numpy()})
    with torch.inference_mode():
        assert_close_to_reference(torch.from_numpy(output), net(x), copy.deepcopy(net).double()(x.double()))


def test_a_slower_file_is_not_faster(tmp_path: Path) -> None:
    """One with more than twenty times the work."""
    x = torch.rand(64, 256)
    for name, layers in (("small", 1), ("large", 24)):
        model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(layers)))
        export.to_onnx(model.eval(), (x,), tmp_path / f"{name}.onnx", verify=False)
    small, large = (tmp_path.joinpath(f"{name}.onnx").read_bytes() for name in ("small", "large"))
    assert compare.is_faster(small, large, (x,))
    assert not compare.is_faster(large, small, (x,))


def test_what_onnxruntime_cannot_run_here_is_written_plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise NotImplemented_("no implementation")

    monkeypatch.setattr(compare, "session", refused)
    path = written(
        Chain().eval(), (torch.rand(2, 2, 640, 198),), tmp_path / "chain.onnx", row_blocks=None, verify=False
    )
    assert "If" not in operators(onnx.load(path).graph)
