"""What goes in and comes out of an ONNX file: structures, Python values, state, and what all of it is called."""

import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgraph import export

Pair = namedtuple("Pair", ["first", "second"])
X = torch.arange(12.0).view(3, 4)


class Calls(nn.Module):
    """A module that calls one function on itself and its input, and may have a buffer."""

    def __init__(self, function: Callable[..., Any], state: Tensor | None = None) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("memory", state)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Options(nn.Module):
    def forward(self, x: Tensor, scale: float = 1.0, mode: str = "plain", *, mask: Tensor | None = None) -> Any:
        y = x * scale if mode == "plain" else -x
        return {"y": y if mask is None else y + mask, "nothing": None}


def metadata(path: Path) -> dict[str, Any]:
    found = export.session(path).get_modelmeta().custom_metadata_map
    return {key: json.loads(found[key]) for key in ("inputs", "outputs") if key in found}


def run(path: Path, *inputs: Tensor) -> list[Tensor]:
    session = export.session(path)
    given = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.as_tensor(output) for output in session.run(None, given)]


@pytest.mark.parametrize(
    ("args", "kwargs", "inputs"),
    [
        ((X, 2.0), None, ["x"]),
        (
            (
                X,
                2.0,
                "other",
            ),
            None,
            ["x"],
        ),
        ((X,), {"scale": 3.0}, ["x"]),
        ((X,), {"mask": X + 1}, ["x", "mask"]),
        ((), {"mask": X + 1, "x": X}, ["x", "mask"]),
        ((X, 2.0), {"mask": None}, ["x"]),
    ],
)
def test_arguments_of_any_kind(args: Any, kwargs: Any, inputs: list[str], tmp_path: Path) -> None:
    """Tensors are the file's inputs, other values are burnt in; None among the results is left out."""
    path = tmp_path / "options.onnx"
    assert export.to_onnx(Options().eval(), args, path, example_kwargs=kwargs) is not None
    tensors = {"x": X, "mask": X + 1}
    (y,) = run(path, *(tensors[name] for name in inputs))
    assert torch.equal(y, Options()(*args, **(kwargs or {}))["y"])
    assert metadata(path) == {"inputs": inputs, "outputs": ["['y']"]}


def test_a_dict_as_an_argument(tmp_path: Path) -> None:
    model = Calls(lambda self, x: x["b"] - x["a"]).eval()
    export.to_onnx(model, ({"b": X, "a": X + 1},), tmp_path / "dict.onnx")
    (y,) = run(tmp_path / "dict.onnx", 2 * X, X)
    assert torch.equal(y, X)
    assert metadata(tmp_path / "dict.onnx")["inputs"] == ["x_b", "x_a"]


def test_results_of_any_structure_and_numbers_among_them(tmp_path: Path) -> None:
    model = Calls(lambda self, x: (Pair(x, x * 2), x.shape[0], x.shape[1], True, 0.1, None)).eval()
    path = tmp_path / "results.onnx"
    export.to_onnx(model, (X,), path)
    outputs = run(path, X[:2])
    assert [output.tolist() for output in outputs[2:]] == [2, 4, True, 0.1]
    assert torch.equal(outputs[0], X[:2])
    assert torch.equal(outputs[1], 2 * X[:2])
    assert metadata(path)["outputs"] == ["[0].first", "[0].second", "[1]", "[2]", "[3]", "[4]"]


def test_results_that_are_inputs_or_buffers_or_come_twice(tmp_path: Path) -> None:
    model = Calls(lambda self, x: (x, x, self.memory, self.memory), torch.ones(2)).eval()
    export.to_onnx(model, (X,), tmp_path / "same.onnx")
    assert [output.tolist() for output in run(tmp_path / "same.onnx", X)] == [X.tolist(), X.tolist(), [1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda self, x: (x * 2, "v1"), r"to_onnx: output 1 is 'v1' \(str\): an ONNX output is a tensor"),
        (lambda self, x: None, r"to_onnx: model returns no tensor; an ONNX file has at least one output"),
        (lambda self, x: (x, torch.fft.rfft(x)), r"to_onnx: output 1 is torch.complex64: .*view_as_real"),
    ],
)
def test_refuses_results_that_onnx_has_not(function: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        export.to_onnx(Calls(function).eval(), (X,), tmp_path / "no.onnx")
    assert not list(tmp_path.iterdir())


def test_refuses_complex_inputs(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"to_onnx: input 'x' is torch.complex64: ONNX has no complex numbers; .*"):
        export.to_onnx(Calls(lambda self, x: x.abs()).eval(), (X.cfloat(),), tmp_path / "no.onnx")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda self, x: x.add_(1) * 2, "model writes to its input 'x', which an ONNX file cannot; clone it first"),
        (lambda self, x: x + self.memory.add_(1), "model writes to its buffer 'memory' and its outputs depend on that"),
        (
            lambda self, x: (self.memory[:2].mul_(0.5), x + self.memory)[1],
            "model writes to its buffer 'memory' and its",
        ),
    ],
)
def test_refuses_state(function: Any, message: str, tmp_path: Path) -> None:
    model, before = Calls(function, torch.ones(4)).eval(), X.clone()
    with pytest.raises(RuntimeError, match=f"to_onnx: {message}"):
        export.to_onnx(model, (X,), tmp_path / "no.onnx")
    assert torch.equal(X, before)
    assert model.memory.tolist() == [1, 1, 1, 1]


def test_refuses_state_in_an_attribute(tmp_path: Path) -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = torch.zeros(4)

        def forward(self, x: Tensor) -> Tensor:
            self.last = x[0] + self.last
            return x + self.last

    with pytest.raises(
        RuntimeError, match=r"to_onnx: model keeps 'last' for its next call: an ONNX file keeps nothing"
    ):
        export.to_onnx(Remembers().eval(), (X,), tmp_path / "no.onnx")


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: (self.memory.add_(1), x * 2)[1],  # a counter
        lambda self, x: (self.memory.copy_(x[0]), x * 2 * self.memory / self.memory)[1],  # written before it is read
    ],
)
def test_writes_without_effect_on_the_outputs_are_left_out(function: Any, tmp_path: Path) -> None:
    x = X + 1
    export.to_onnx(Calls(function, torch.ones(4)).eval(), (x,), tmp_path / "counts.onnx", verify=False)
    (y,) = run(tmp_path / "counts.onnx", x)
    torch.testing.assert_close(y, x * 2)


class Attention(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return (x @ x.transpose(1, 2) + mask).softmax(-1) @ x


def test_only_a_size_that_inputs_share_as_their_first_is_the_batch(tmp_path: Path) -> None:
    def shapes(model: nn.Module, *inputs: Tensor) -> list[list[Any]]:
        export.to_onnx(model.eval(), inputs, tmp_path / "named.onnx", overwrite=True)
        return [value.shape for value in export.session(tmp_path / "named.onnx").get_inputs()]

    assert shapes(nn.Identity(), X) == [["batch", "features"]]
    assert shapes(Attention(), torch.rand(4, 5, 3), torch.rand(5, 5)) == [
        ["input_0_axis_0", "length", "input_0_axis_2"],
        ["length", "length"],
    ]
    assert shapes(Attention(), torch.rand(4, 5, 3), torch.rand(4, 5, 5)) == [
        ["batch", "length", "input_0_axis_2"],
        ["batch", "length", "length"],
    ]
