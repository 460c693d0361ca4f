"""Verification finds a wrong file, says how wrong it is, and leaves nothing."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from torch import Tensor, nn

from fastgraph import export
from fastgraph.capture import capture
from fastgraph.data import digits
from fastgraph.export import captures, check, trials
from fastgraph.export import onnx as export_onnx
from fastgraph.models import DeepLearningModel


def changed(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """``change(model)`` is made to every ONNX model before it is verified."""
    finish = export_onnx._finish

    def finish_and_change(model: Any, *about: Any) -> None:
        finish(model, *about)
        change(model)

    monkeypatch.setattr(export_onnx, "_finish", finish_and_change)


def test_a_wrong_weight_is_found_and_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One weight is a tenth of a percent off."""

    def change(model: Any) -> None:
        weight = model.graph.initializers["layer3.weight"]
        numbers = weight.const_value.numpy().copy()
        numbers[np.unravel_index(np.abs(numbers).argmax(), numbers.shape)] *= 1.001
        weight.const_value = onnx_ir.tensor(numbers, name="layer3.weight")

    changed(monkeypatch, change)
    message = r"output 'output' on inputs of shape \[\d+, 784\]: error ([\d.e-]+) against float64, allowed ([\d.e-]+); "
    with pytest.raises(RuntimeError, match=message) as raised:
        export.to_onnx(DeepLearningModel.pretrained(), (digits()[0][:16],), tmp_path / "deep.onnx")
    found = re.search(message, str(raised.value))
    assert found is not None
    assert float(found[2]) < float(found[1]) < 1e-2
    assert not list(tmp_path.iterdir())


def test_a_batch_that_is_burnt_in_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten().view(x.shape[0], 2, 2).sum(2)

    def change(model: Any) -> None:
        for node in model.graph:
            if node.op_type == "Reshape" and node.outputs[0].shape.rank() == 3:
                burnt = onnx_ir.val("burnt", const_value=onnx_ir.tensor(np.array([2, 2, 2]), name="burnt"))
                model.graph.initializers["burnt"] = burnt
                node.replace_input_with(1, burnt)

    changed(monkeypatch, change)
    message = r"^to_onnx: onnxruntime fails on inputs of shape \[1, 4\]: .*shape.*; nothing was written$"
    with pytest.raises(RuntimeError, match=message):
        export.to_onnx(Halves().eval(), (torch.rand(2, 4),), tmp_path / "halves.onnx")
    assert not list(tmp_path.iterdir())
    assert "[E:onnxruntime" not in capfd.readouterr().err, "what was raised is printed too"


def test_a_file_that_is_no_valid_model_is_named() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[N] x) => (float[N] y) { y = Relu(x, x) }'
    )
    with pytest.raises(RuntimeError, match=r"to_onnx: the file does not pass onnx.checker: .*Relu"):
        check.check(model.SerializeToString())


def test_whole_numbers_have_to_be_equal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Largest(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1)

    export.to_onnx(Largest().eval(), (torch.rand(4, 7),), tmp_path / "largest.onnx")

    def change(model: Any) -> None:
        (node,) = (node for node in model.graph if node.op_type == "ArgMax")
        node.op_type = "ArgMin"

    changed(monkeypatch, change)
    with pytest.raises(RuntimeError, match=r"output 'output' on inputs of shape \[4, 7\] differs from PyTorch's"):
        export.to_onnx(Largest().eval(), (torch.rand(4, 7),), tmp_path / "smallest.onnx")


def test_rows_that_come_again_are_moved_on() -> None:
    x = torch.arange(6.0).view(2, 3)
    (more,) = trials.rows([x], 5)
    assert more.tolist() == [[0, 1, 2], [3, 4, 5], [2, 0, 1], [5, 3, 4], [1, 2, 0]]
    assert trials.rows([x], 1)[0].tolist() == [[0, 1, 2]]
    assert trials.rows([x[:0]], 2)[0].tolist() == [[0, 0, 0], [0, 0, 0]]


def tried(model: nn.Module, flat: list[Tensor], declared: list[list[Any]]) -> list[tuple[tuple[int, ...], ...]]:
    """The shapes of the trials, of every input."""
    captured = capture(model.eval(), tuple(flat))
    graph_for = partial(captures.Model(model, tuple(flat), {}).graph_for, captured)
    return [tuple(tuple(t.shape) for t in inputs) for inputs, _ in trials.trials(graph_for, flat, declared)]


def test_every_free_axis_is_tried_in_another_size_and_in_1() -> None:
    names = [["batch", 3, "height", "width"]]
    shapes = [shape for (shape,) in tried(nn.Conv2d(3, 2, 3), [torch.rand(4, 3, 6, 8)], names)]
    images = [(4, 6, 8), (1, 6, 8), (3, 6, 8), (1, 7, 8), (1, 6, 9), (2, 7, 9)]  # of height or width 1 eager takes none
    assert shapes == [(batch, 3, *image) for batch, *image in images]
    shapes = [shape for (shape,) in tried(nn.Linear(3, 2), [torch.rand(1, 5, 3)], [["batch", "length", 3]])]
    assert shapes == [(1, 5, 3), (3, 5, 3), (1, 6, 3), (1, 1, 3), (2, 6, 3)]


class Graph(nn.Module):
    """Each node adds up what its neighbours have: the second input holds numbers of rows of the first."""

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])


class Attention(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return (x @ x.transpose(1, 2) + mask).softmax(-1) @ x


class Unpool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_unpool2d(*nn.functional.max_pool2d(x, 2, return_indices=True), 2)


class Table(nn.Module):
    def forward(self, index: Tensor, table: Tensor) -> Tensor:
        return nn.functional.embedding(index, table)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Graph(), (torch.rand(6, 3), torch.tensor([[2, 5, 3, 4, 1], [3, 2, 5, 0, 1]]))),
        (Attention(), (torch.rand(4, 5, 3), torch.rand(5, 5))),
        (Attention(), (torch.rand(1, 5, 3), torch.rand(5, 5))),
        (Unpool(), (torch.rand(2, 3, 8, 8),)),
        (Table(), (torch.tensor([[3, 1], [0, 5]]), torch.rand(6, 4))),
        (Table(), (torch.tensor([5]), torch.rand(6, 4))),
    ],
)
def test_the_users_own_inputs_are_tried_whole(model: nn.Module, inputs: tuple[Tensor, ...], tmp_path: Path) -> None:
    """Rows cut off any of them would be another model's inputs: an index out of its table, a mask of another length."""
    verified = export.to_onnx(model.eval(), inputs, tmp_path / "whole.onnx")
    assert verified is not None
    assert tuple(inputs[0].shape) in verified.shapes
    (actual,) = export.Binding(export.session(tmp_path / "whole.onnx"))(*inputs)
    torch.testing.assert_close(actual, model(*inputs))


def test_what_eager_refuses_is_no_trial() -> None:
    """Neither 1 nor 3 nor 5 rows of a table of which the sixth is asked for."""
    shapes = tried(Table(), [torch.tensor([2, 5, 0]), torch.rand(6, 4)], [["n"], ["rows", "features"]])
    expected = [(3, 6, 4), (3, 6, 5), (3, 6, 1), (4, 6, 4), (1, 6, 4), (1, 7, 4)]
    assert shapes == [((n,), (rows, features)) for n, rows, features in expected]


def test_a_whole_number_may_be_eagers_or_float64s() -> None:
    eager, exact = torch.tensor([1, 2, 3]), torch.tensor([1, 5, 3])
    for output in ([1, 2, 3], [1, 5, 3]):
        assert check._compare("output", [], torch.tensor(output), eager, exact) == 0
    for output in ([1, 4, 3], [1, 2, 4], [1, 2]):
        with pytest.raises(RuntimeError, match="output 'output' on inputs of shape .* differs from PyTorch's"):
            check._compare("output", [], torch.tensor(output), eager, exact)


def test_random_numbers_cannot_be_verified_and_dropout_that_is_off_can(tmp_path: Path) -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(RuntimeError, match="cannot verify: aten.rand_like.default draws random numbers; verify=False"):
        export.to_onnx(Noise().eval(), (torch.rand(2, 3),), tmp_path / "noise.onnx")
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.AlphaDropout())
    assert export.to_onnx(model.eval(), (torch.rand(2, 3),), tmp_path / "dropout.onnx") is not None


def test_a_model_that_float64_cannot_be_had_of_is_not_verified_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = check.numbers.run
    monkeypatch.setattr(check.numbers, "run", lambda c, f, dtype: None if dtype is torch.float64 else run(c, f, dtype))
    with pytest.raises(RuntimeError, match=r"cannot verify: an operator of the model does not run in float64"):
        export.to_onnx(nn.Linear(3, 3).eval(), (torch.rand(2, 3),), tmp_path / "insists.onnx")
    assert export.to_onnx(nn.Linear(3, 3).eval(), (torch.rand(2, 3),), tmp_path / "insists.onnx", verify=False) is None
