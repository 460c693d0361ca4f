"""ONNX files and the sessions that run them."""

import copy
import warnings
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import export
from bench.cases import informative_net, variants
from fastgraph.data import digits, photograph
from fastgraph.models import DeepLearningModel
from tests.reference import assert_close_to_reference


class SumAndProduct(nn.Module):
    def forward(self, lhs: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        return lhs + rhs, lhs * rhs


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def deep_file(folder: Path) -> Path:
    """``DeepLearningModel``, exported from an example of batch 1."""
    export.to_onnx(DeepLearningModel.pretrained(), (digits()[0][:1],), folder / "deep.onnx")
    return folder / "deep.onnx"


@pytest.fixture(scope="module")
def net_file(folder: Path) -> Path:
    """``Net``, exported from an example of batch 1."""
    export.to_onnx(informative_net(), (photograph(),), folder / "net.onnx")
    return folder / "net.onnx"


def assert_same_numbers(file: Path, model: nn.Module, x: Tensor) -> None:
    """The file's output equals the model's, by the tolerance derived from eager's own error."""
    (output,) = export.session(file).run(["output"], {"input": x.numpy()})
    with torch.inference_mode():
        exact = torch.cat([copy.deepcopy(model).double()(row.double()) for row in x.split(1)])
        assert_close_to_reference(torch.from_numpy(output), model(x), exact)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_deep_learning_model_takes_any_batch(deep_file: Path, batch: int) -> None:
    assert_same_numbers(deep_file, DeepLearningModel.pretrained(), digits()[0][:batch])


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_net_takes_any_batch(net_file: Path, batch: int) -> None:
    assert_same_numbers(net_file, informative_net(), variants(photograph(), batch))


@pytest.mark.parametrize("batch", [0, 1])
def test_an_example_of_batch_0_or_1_is_not_burnt_in(batch: int, tmp_path: Path, generator: torch.Generator) -> None:
    """Attention chooses its way by the sizes, so an example of one row would give a file for one row."""
    model = SelfAttention().eval()
    export.to_onnx(model, (torch.ones(batch, 5, 8),), tmp_path / "attention.onnx")
    assert_same_numbers(tmp_path / "attention.onnx", model, torch.randn(4, 5, 8, generator=generator))


def test_batch_axis_and_values_are_named(deep_file: Path, net_file: Path) -> None:
    deep, net = export.session(deep_file), export.session(net_file)
    assert [(value.name, value.shape) for value in deep.get_inputs()] == [("input", ["batch", 784])]
    assert [(value.name, value.shape) for value in deep.get_outputs()] == [("output", ["batch", 10])]
    assert [(value.name, value.shape) for value in net.get_inputs()] == [("input", ["batch", 3, 720, 480])]
    assert [(value.name, value.shape) for value in net.get_outputs()] == [("output", ["5728*batch", 1])]


def test_one_file_that_checks_and_holds_no_path(deep_file: Path, net_file: Path) -> None:
    assert sorted(file.name for file in deep_file.parent.glob("*")) == [deep_file.name, net_file.name]
    for file in (deep_file, net_file):
        onnx.checker.check_model(file, full_check=True)
        assert str(Path(export.__file__).parents[1]).encode() not in file.read_bytes()


def test_several_inputs_share_the_batch_and_nothing_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export.to_onnx(SumAndProduct().eval(), (torch.ones(1, 3), torch.ones(1, 3)), tmp_path / "two.onnx")
    assert capfd.readouterr() == ("", "")
    session = export.session(tmp_path / "two.onnx")
    assert [(value.name, value.shape) for value in session.get_inputs()] == [
        ("input_0", ["batch", 3]),
        ("input_1", ["batch", 3]),
    ]
    lhs, rhs = torch.arange(12.0).view(4, 3), torch.full((4, 3), 2.0)
    total, product = session.run(["output_0", "output_1"], {"input_0": lhs.numpy(), "input_1": rhs.numpy()})
    assert torch.equal(torch.from_numpy(total), lhs + rhs)
    assert torch.equal(torch.from_numpy(product), lhs * rhs)


@pytest.mark.parametrize("example_inputs", [torch.ones(1, 784), [torch.ones(1, 784)], (1,)])
def test_refuses_example_inputs_that_are_no_tuple_of_tensors(example_inputs: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="to_onnx: example_inputs must be a tuple of tensors; got"):
        export.to_onnx(DeepLearningModel().eval(), example_inputs, tmp_path / "no.onnx")


@pytest.mark.parametrize(("example_inputs", "got"), [((), r"\[\]"), ((torch.tensor(1.0),), r"\[\(\)\]")])
def test_refuses_example_inputs_without_a_batch(example_inputs: Any, got: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"tensors with a batch axis, at least one; got shapes {got}"):
        export.to_onnx(DeepLearningModel().eval(), example_inputs, tmp_path / "no.onnx")


def test_refuses_a_model_in_training_mode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model must be in eval mode.*call model.eval\(\) first"):
        export.to_onnx(DeepLearningModel(), (torch.ones(1, 784),), tmp_path / "no.onnx")
    assert not list(tmp_path.iterdir())


def test_session_uses_the_threads_that_torch_has_or_that_were_asked_for(deep_file: Path) -> None:
    torch.set_num_threads(1)
    assert export.session(deep_file).get_session_options().intra_op_num_threads == 1
    options = export.session(deep_file, threads=2).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


def test_session_runs_on_the_cpu_by_default(deep_file: Path) -> None:
    assert export.session(deep_file).get_providers() == ["CPUExecutionProvider"]


def test_session_refuses_an_unknown_provider(deep_file: Path) -> None:
    with pytest.raises(ValueError, match="session: provider must be one of cpu, cuda; got 'tpu'"):
        export.session(deep_file, provider="tpu")


# onnxruntime warns of the fallback itself where its build has no CUDA at all; ours is an error either way
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available provider names")
@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA can be had here")
def test_session_never_falls_back_to_the_cpu(deep_file: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"provider 'cuda' \(CUDAExecutionProvider\) cannot be had here.*offers CPUExecutionProvider"
    ):
        export.session(deep_file, provider="cuda")
