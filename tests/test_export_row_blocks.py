"""The loop over blocks of rows: when it is made, and that nothing changes but the time."""

import copy
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import export
import fastgraph
from bench.cases import informative_net, variants
from export import row_blocks
from fastgraph.data import photograph
from fastgraph.models import Net
from tests.reference import assert_close_to_reference


def written(model: nn.Module, x: Tensor, path: Path, *, verify: bool = False, row_blocks: bool = True) -> Path:
    optimized = fastgraph.optimize(model, (x,), verify=False)
    export.to_onnx(optimized, (x,), path, verify=verify, row_blocks=row_blocks)
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
    return written(net, photograph(), tmp_path_factory.mktemp("row_blocks") / "net.onnx", verify=True)


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
    """A convolution and linear layers on rows of ``features``, with what keeps it from being cut, or not."""

    def __init__(self, *, pad: int = 0, ceil: bool = False, also: bool = False, features: int = 98) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 16, 3, padding=pad), nn.MaxPool2d(2, ceil_mode=ceil)
        self.fc, self.also, self.features = nn.Linear(features, 3), also, features

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        pooled = torch.relu(self.pool(self.conv(x)))
        rows = torch.tanh(self.fc(pooled.view(-1, self.features)))
        return (rows, pooled) if self.also else (rows,)


@pytest.mark.parametrize(
    ("model", "size", "made"),
    [
        (Chain(), (640, 198), True),
        (Chain(), (300, 198), False),  # in the cache as a whole
        (Chain(pad=1, features=99), (640, 198), False),
        (Chain(ceil=True), (640, 198), False),
        (Chain(also=True), (640, 198), False),  # the pooled values are a result too
    ],
)
def test_which_chains_become_a_loop(
    model: nn.Module, size: tuple[int, int], made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_blocks, "CACHE_BYTES", 3 << 20)
    x = torch.rand(2, 2, *size)
    path = written(model.eval(), x, tmp_path / "chain.onnx", verify=made)
    assert ("If" in operators(onnx.load(path).graph)) == made


def test_only_an_optimized_module_and_only_when_wanted(tmp_path: Path) -> None:
    photo = photograph()
    assert "If" not in operators(
        onnx.load(written(Net().eval(), photo, tmp_path / "flat.onnx", row_blocks=False)).graph
    )
