"""An ONNX file holds for every size that it declares free: of a batch, of unused inputs, of any other axis."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastgraph
from fastgraph import export
from fastgraph.export import onnx as export_onnx
from tests.reference import assert_close_to_reference


class Alone(nn.Module):
    """Another way for a lone row than for several."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.shape[0] == 1 else x + x.mean(0)


class Unused(nn.Module):
    """Its second input has no part in anything, and no axis in common with the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 2, 8, batch_first=True)

    def forward(self, x: Tensor, unused: Tensor) -> Tensor:
        shifted = torch.zeros_like(x)
        shifted[:, 1:] = x[:, :-1]
        return self.layer(shifted)


class Steps(nn.Module):
    """A recurrent layer over the first axis, which torch.export writes out step by step."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(6, 3, num_layers=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def assert_computes(file: Path, model: nn.Module, *inputs: Tensor) -> None:
    """The file's only output is the model's, by the tolerance derived from eager's own error."""
    (output,) = export.Binding(export.session(file))(*inputs)
    with torch.inference_mode():
        eager = model(*inputs)
        exact = model.double()(*(x.double() if x.is_floating_point() else x for x in inputs))
        model.float()
    assert_close_to_reference(output, eager, exact)


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("example", [1, 2, 4])
def test_an_unused_input_hides_no_batch(example: int, optimized: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Unused().eval()
    inputs = {batch: (torch.randn(batch, 3, 2), torch.zeros(batch, 5, dtype=torch.long)) for batch in (1, 2, 3, 4)}
    written = fastgraph.optimize(model, inputs[example]) if optimized else model
    verified = export.to_onnx(written, inputs[example], tmp_path / "unused.onnx")
    assert verified is not None
    assert {(1, 3, 2), (3, 3, 2), (example, 3, 2)} <= set(verified.shapes)
    for given in inputs.values():
        assert_computes(tmp_path / "unused.onnx", model, *given)


@pytest.mark.parametrize("verify", [True, False])
def test_a_graph_of_a_lone_row_gives_a_file_of_one(verify: bool, tmp_path: Path) -> None:
    """The axis is no longer free in the file, and onnxruntime says so; it would compute the first way for all."""
    model = Alone().eval()
    export.to_onnx(model, (torch.randn(1, 6),), tmp_path / "alone.onnx", verify=verify)
    assert export.session(tmp_path / "alone.onnx").get_inputs()[0].shape == [1, "features"]
    assert_computes(tmp_path / "alone.onnx", model, torch.randn(1, 9))
    with pytest.raises(RuntimeError, match="Got: 3 Expected: 1"):
        assert_computes(tmp_path / "alone.onnx", model, torch.randn(3, 6))


def test_a_graph_of_several_rows_is_refused_where_a_lone_one_takes_another_way(tmp_path: Path) -> None:
    message = (
        r"^to_onnx: one file cannot hold for all sizes that the model takes: inputs: the captured graph needs "
        r"x.shape\[0\] (!= 1|>= 2), got x of shape \[1, 6\], and the model computes something else there; "
        "an example of that size gives a file of its own; nothing was written$"
    )
    with pytest.raises(RuntimeError, match=message):
        export.to_onnx(Alone().eval(), (torch.randn(4, 6),), tmp_path / "alone.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_steps_that_are_written_out_are_a_fixed_size(kind: type[nn.RNNBase], steps: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Steps(kind).eval()
    export.to_onnx(model, (torch.randn(steps, 2, 6),), tmp_path / "steps.onnx")
    (declared,) = (value.shape for value in export.session(tmp_path / "steps.onnx").get_inputs())
    assert declared == [steps, declared[1], 6]
    assert isinstance(declared[1], str)
    assert_computes(tmp_path / "steps.onnx", model, torch.randn(steps, 2, 6))
    with pytest.raises(RuntimeError, match=f"Got: {steps + 1} Expected: {steps}"):
        assert_computes(tmp_path / "steps.onnx", model, torch.randn(steps + 1, 2, 6))


class Pooled(nn.Module):
    """An adaptive pool along an axis, or along the first one."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = nn.functional.adaptive_avg_pool2d(x.transpose(0, 2) if self.first else x, 2)
        return pooled


@pytest.mark.parametrize("verify", [True, False])
def test_axes_that_a_decomposition_has_for_some_sizes_only_are_fixed(
    verify: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torch.onnx decomposes an adaptive pool for the size of the example, in which an ordinary one does."""
    monkeypatch.setattr(export_onnx, "translations", dict)
    model, path = Pooled(first=False).eval(), tmp_path / "pool.onnx"
    export.to_onnx(model, (torch.rand(2, 3, 8, 4),), path, verify=verify)
    batch, channels, height, width = export.session(path).get_inputs()[0].shape
    assert isinstance(batch, str)
    assert isinstance(channels, str)
    assert (height, width) == (8, 4)
    assert_computes(path, model, torch.rand(5, 1, 8, 4))
    message = r"translation of Pooled holds only where .*x.shape\[0\] // 2.* == 4.*, which no file can say$"
    with pytest.raises(RuntimeError, match=message):
        export.to_onnx(Pooled(first=True).eval(), (torch.rand(8, 3, 2, 8),), path, overwrite=True, verify=verify)


def test_an_axis_along_which_the_model_takes_several_ways_is_fixed(tmp_path: Path) -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.tensor_split(2, 1)[0].sum(1) if x.shape[1] % 2 == 0 else x[:, 0]

    model = Halves().eval()
    export.to_onnx(model, (torch.rand(2, 6, 3),), tmp_path / "halves.onnx")
    batch, length, features = export.session(tmp_path / "halves.onnx").get_inputs()[0].shape
    assert isinstance(batch, str)
    assert length == 6
    assert isinstance(features, str)
    assert_computes(tmp_path / "halves.onnx", model, torch.rand(5, 6, 4))


def test_sizes_that_change_together_alone_stay_free_and_are_tried(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x, x], 1) + y

    model = Twice().eval()
    verified = export.to_onnx(model, (torch.rand(2, 3), torch.rand(2, 6)), tmp_path / "twice.onnx")
    assert verified is not None
    assert verified.shapes == ((2, 3), (1, 3), (3, 3), (1, 4), (1, 1), (2, 4)), "the second input is longer too"
    assert_computes(tmp_path / "twice.onnx", model, torch.rand(5, 4), torch.rand(5, 8))
