"""ONNX files: what is in them, and that they compute what the model computes."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import fastgraph
import fastgraph.rewrite
from fastgraph import export
from fastgraph.bench.cases import informative_net, variants
from fastgraph.data import digits, photograph
from fastgraph.export import onnx as export_onnx
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
    verified = export.to_onnx(DeepLearningModel.pretrained(), (digits()[0][:1],), folder / "deep.onnx")
    assert str(verified).startswith("verified on 1x784, 3x784: largest error against float64 ")
    return folder / "deep.onnx"


@pytest.fixture(scope="module")
def net_file(folder: Path) -> Path:
    """``Net``, exported from an example of batch 1."""
    verified = export.to_onnx(informative_net(), (photograph(),), folder / "net.onnx")
    assert verified is not None
    sizes = [(1, 720, 480), (3, 720, 480), (1, 721, 480), (1, 720, 479), (2, 719, 479)]
    assert verified.shapes == tuple((batch, 3, *image) for batch, *image in sizes)
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


@pytest.mark.parametrize("batch", [1, 3])
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
    assert [(value.name, value.shape) for value in net.get_inputs()] == [("input", ["batch", 3, "height", "width"])]
    ((name, (rows, one)),) = [(value.name, value.shape) for value in net.get_outputs()]
    assert (name, one) == ("output", 1)
    assert rows == "((8*batch*((((width - 5)//2)) + 1)*((((height - 5)//2)) + 1))//119)"


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
        ("input_0", ["batch", "features"]),
        ("input_1", ["batch", "features"]),
    ]
    lhs, rhs = torch.arange(12.0).view(4, 3), torch.full((4, 3), 2.0)
    total, product = session.run(["output_0", "output_1"], {"input_0": lhs.numpy(), "input_1": rhs.numpy()})
    assert torch.equal(torch.from_numpy(total), lhs + rhs)
    assert torch.equal(torch.from_numpy(product), lhs * rhs)


@pytest.mark.parametrize("example_inputs", [torch.ones(1, 784), [torch.ones(1, 784)], {"x": torch.ones(1, 784)}])
def test_refuses_example_inputs_that_are_no_tuple(example_inputs: Any, tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match="to_onnx: example_inputs must be a tuple of the arguments; got (Tensor|list|dict)"
    ):
        export.to_onnx(DeepLearningModel().eval(), example_inputs, tmp_path / "no.onnx")


def test_refuses_example_kwargs_that_are_no_dict(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="to_onnx: example_kwargs must be a dict of the named arguments; got list"):
        export.to_onnx(DeepLearningModel().eval(), (), tmp_path / "no.onnx", example_kwargs=[1])  # type: ignore[arg-type]


def test_refuses_what_is_no_module(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="to_onnx: model must be a torch.nn.Module; got str"):
        export.to_onnx("deep", (torch.ones(1, 784),), tmp_path / "no.onnx")  # type: ignore[arg-type]


def test_a_model_of_bfloat16_gets_an_opset_that_has_it(tmp_path: Path) -> None:
    """Its own dtype, and the one that it was optimized for."""
    conv, x = nn.Conv2d(3, 2, 3).eval(), torch.rand(2, 3, 8, 8)
    optimized = fastgraph.optimize(conv, (x,), dtype=torch.bfloat16, verify=False)
    export.to_onnx(optimized, (x,), tmp_path / "optimized.onnx", verify=False)
    export.to_onnx(conv.bfloat16(), (x.bfloat16(),), tmp_path / "own.onnx", verify=False)
    for name in ("optimized", "own"):
        assert onnx.load(tmp_path / f"{name}.onnx").opset_import[0].version == export_onnx.BFLOAT16_OPSET
    with pytest.raises(ValueError, match="opset must be 22 to 25 for torch.bfloat16; got 20"):
        export.to_onnx(optimized, (x,), tmp_path / "no.onnx", opset=20)


@pytest.mark.parametrize("example_inputs", [(), (1,)])
def test_refuses_example_inputs_without_a_tensor(example_inputs: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"to_onnx: example_inputs must have a tensor, at least one; got \("):
        export.to_onnx(DeepLearningModel().eval(), example_inputs, tmp_path / "no.onnx")


def test_refuses_a_model_in_training_mode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model must be in eval mode.*call model.eval\(\) first"):
        export.to_onnx(DeepLearningModel(), (torch.ones(1, 784),), tmp_path / "no.onnx")
    assert not list(tmp_path.iterdir())


class Normalised(nn.Module):
    """Batch-norm behind a convolution and behind a linear layer, with statistics that matter; dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.linear, self.norm_1 = nn.Linear(8, 5, bias=False), nn.BatchNorm1d(5)
        for norm in (self.norm, self.norm_1):
            nn.init.uniform_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2).mean((2, 3))
        x = torch.relu(torch.relu(self.norm_1(self.linear(x))))
        return nn.functional.dropout(x, training=self.training)


def operators(file: Path) -> list[str]:
    return [node.op_type for node in onnx.load(file).graph.node]


def test_a_plain_module_is_written_as_it_is(net_file: Path) -> None:
    expected = "Conv Relu MaxPool Reshape Gemm Relu Gemm Relu Sigmoid Relu"
    assert operators(net_file) == expected.split()


def test_an_optimized_module_is_written_simplified(tmp_path: Path) -> None:
    """ReLU after the pool, none after the sigmoid."""
    model, photo = informative_net(), photograph()
    export.to_onnx(fastgraph.optimize(model, (photo,)), (photo,), tmp_path / "net.onnx", verify=False, row_blocks=False)
    assert operators(tmp_path / "net.onnx") == [
        "Conv",
        "MaxPool",
        "Relu",
        "Reshape",
        "Gemm",
        "Relu",
        "Gemm",
        "Relu",
        "Sigmoid",
    ]
    assert_same_numbers(tmp_path / "net.onnx", model, photo)


def test_batch_norm_is_folded_and_dropout_gone(tmp_path: Path, generator: torch.Generator) -> None:
    torch.manual_seed(0)
    model, x = Normalised().eval(), torch.randn(2, 3, 12, 12, generator=generator)
    export.to_onnx(fastgraph.optimize(model, (x,)), (x,), tmp_path / "norm.onnx")
    assert operators(tmp_path / "norm.onnx") == ["Conv", "MaxPool", "Relu", "ReduceMean", "Gemm", "Relu"]
    shapes = [list(weight.dims) for weight in onnx.load(tmp_path / "norm.onnx").graph.initializer]
    assert sorted(shapes, key=str) == [[2], [5, 8], [5], [8, 3, 3, 3], [8]]  # [2]: the axes of the mean
    assert_same_numbers(tmp_path / "norm.onnx", model, torch.randn(5, 3, 9, 17, generator=generator))


def test_what_is_loaded_can_be_exported(tmp_path: Path) -> None:
    images = digits()[0][:2]
    fastgraph.save(fastgraph.optimize(DeepLearningModel.pretrained(), (images,)), tmp_path / "deep.fastgraph")
    export.to_onnx(fastgraph.load(tmp_path / "deep.fastgraph"), (images,), tmp_path / "deep.onnx")
    assert_same_numbers(tmp_path / "deep.onnx", DeepLearningModel.pretrained(), images)


def test_one_file_takes_batches_1_to_17_and_the_digits_accuracy_is_pytorchs(tmp_path: Path) -> None:
    model, (images, labels) = DeepLearningModel.pretrained(), digits()
    export.to_onnx(fastgraph.optimize(model, (images,)), (images[:16],), tmp_path / "deep.onnx")
    session = export.session(tmp_path / "deep.onnx")

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])

    with torch.inference_mode():
        for batch in range(1, 18):
            exact = copy.deepcopy(model).double()(images[:batch].double())
            assert_close_to_reference(run(images[:batch]), model(images[:batch]), exact)
        correct = (model(images).argmax(1) == labels).sum()
    assert (run(images).argmax(1) == labels).sum() == correct


@pytest.mark.parametrize("optimized", [False, True])
def test_float16_computes_in_float16_and_keeps_inputs_and_outputs(optimized: bool, tmp_path: Path) -> None:
    model, images = DeepLearningModel.pretrained(), digits()[0][:16]
    chosen = fastgraph.optimize(model, (images,)) if optimized else model
    export.to_onnx(chosen, (images,), tmp_path / "half.onnx", dtype=torch.float16)
    content = onnx.load(tmp_path / "half.onnx")
    assert {weight.data_type for weight in content.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert operators(tmp_path / "half.onnx") == ["Cast", "Gemm", "Relu", "Gemm", "Relu", "Gemm", "Softmax", "Cast"]
    assert (tmp_path / "half.onnx").stat().st_size < 1_150_000  # 535,818 parameters of two bytes
    session = export.session(tmp_path / "half.onnx")
    assert session.get_inputs()[0].type == session.get_outputs()[0].type == "tensor(float)"


def test_the_dtype_of_an_optimized_module_is_the_files(tmp_path: Path) -> None:
    images = digits()[0][:2]
    half = fastgraph.optimize(DeepLearningModel.pretrained(), (images,), dtype=torch.float16)
    export.to_onnx(half, (images,), tmp_path / "half.onnx")
    weights = onnx.load(tmp_path / "half.onnx").graph.initializer
    assert {weight.data_type for weight in weights} == {onnx.TensorProto.FLOAT16}


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA takes bfloat16")
def test_bfloat16_is_refused_where_onnxruntime_does_not_take_it(tmp_path: Path) -> None:
    model, images = DeepLearningModel.pretrained(), digits()[0][:2]
    message = r"CPUExecutionProvider does not take this model in torch.bfloat16: Could not find an implementation for G"
    with pytest.raises(RuntimeError, match=message):
        export.to_onnx(model, (images,), tmp_path / "bf16.onnx", dtype=torch.bfloat16)
    assert not list(tmp_path.iterdir())
    assert export.to_onnx(model, (images,), tmp_path / "bf16.onnx", dtype=torch.bfloat16, verify=False) is None
    content = onnx.load(tmp_path / "bf16.onnx")
    assert {weight.data_type for weight in content.graph.initializer} == {onnx.TensorProto.BFLOAT16}
    assert content.opset_import[0].version == export_onnx.BFLOAT16_OPSET


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    images = digits()[0][:2]
    labels = [str(digit) for digit in range(10)]
    export.to_onnx(
        DeepLearningModel.pretrained(),
        (images,),
        tmp_path / "deep.onnx",
        opset=18,
        name="digits",
        preprocessing="28x28, grey, 0 to 1",
        labels=labels,
    )
    about = export.session(tmp_path / "deep.onnx").get_modelmeta()
    assert (about.producer_name, about.graph_name) == ("fastgraph", "digits")
    assert json.loads(about.custom_metadata_map["labels"]) == labels
    assert about.custom_metadata_map["preprocessing"] == "28x28, grey, 0 to 1"
    assert about.custom_metadata_map["torch"] == torch.__version__
    content = onnx.load(tmp_path / "deep.onnx")
    assert content.producer_version == fastgraph.__version__
    assert content.opset_import[0].version == 18


@pytest.mark.parametrize(("opset", "dtype"), [(17, None), (26, None), (21, torch.bfloat16)])
def test_refuses_an_unknown_opset(opset: int, dtype: torch.dtype | None, tmp_path: Path) -> None:
    least = "22 to 25 for torch.bfloat16" if dtype else "18 to 25"
    with pytest.raises(ValueError, match=f"to_onnx: opset must be {least}; got {opset}"):
        export.to_onnx(DeepLearningModel.pretrained(), (torch.ones(1, 784),), tmp_path / "no", opset=opset, dtype=dtype)


def test_refuses_an_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"to_onnx: dtype must be one of torch.float32, .*; got torch.int8"):
        export.to_onnx(DeepLearningModel.pretrained(), (torch.ones(1, 784),), tmp_path / "no", dtype=torch.int8)


def test_an_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    model, path = nn.Linear(3, 2).eval(), tmp_path / "linear.onnx"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"linear.onnx' exists; overwrite=True replaces it"):
        export.to_onnx(model, (torch.ones(2, 3),), path)
    assert path.read_text() == "mine"
    export.to_onnx(model, (torch.ones(2, 3),), path, overwrite=True)
    assert operators(path) == ["Gemm"]
    assert list(tmp_path.iterdir()) == [path]
