"""The reference models, the shipped weights, and the script that trains them."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from fastgraph.data import digits
from fastgraph.models import DeepLearningModel, Net
from fastgraph.pretrained import train as training

DEEP_OPS = ["linear", "relu", "linear", "relu", "linear", "softmax"]
NET_OPS = ["conv2d", "relu", "max_pool2d", "view", "linear", "relu", "linear", "relu", "sigmoid", "relu"]


def operators(model: nn.Module, x: torch.Tensor) -> list[str]:
    """Names of the ATen operators that the model calls, in order."""
    graph = torch.export.export(model, (x,)).graph
    return [node.target.overloadpacket.__name__ for node in graph.nodes if node.op == "call_function"]


@pytest.fixture(scope="module")
def one_epoch() -> DeepLearningModel:
    return training.train(epochs=1)


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch, one_epoch: DeepLearningModel) -> None:
    """The training script's main with a model that is already trained, for one epoch."""
    monkeypatch.setattr(training, "train", lambda: one_epoch)


def test_deep_learning_model_is_as_designed() -> None:
    model = DeepLearningModel()
    assert [(name, str(layer)) for name, layer in model.named_children()] == [
        ("layer1", "Linear(in_features=784, out_features=512, bias=True)"),
        ("layer2", "Linear(in_features=512, out_features=256, bias=True)"),
        ("layer3", "Linear(in_features=256, out_features=10, bias=True)"),
        ("relu", "ReLU()"),
        ("softmax", "Softmax(dim=1)"),
    ]
    assert operators(model, torch.zeros(DeepLearningModel.input_shape)) == DEEP_OPS


def test_net_is_as_designed() -> None:
    model = Net()
    assert [(name, str(layer)) for name, layer in model.named_children()] == [
        ("conv1", "Conv2d(3, 16, kernel_size=(3, 3), stride=(1, 1))"),
        ("pool", "MaxPool2d(kernel_size=3, stride=2, padding=0, dilation=1, ceil_mode=False)"),
        ("fc1", "Linear(in_features=238, out_features=120, bias=True)"),
        ("fc2", "Linear(in_features=120, out_features=1, bias=True)"),
        ("fc3", "Sigmoid()"),
    ]
    assert operators(model, torch.zeros(Net.input_shape)) == NET_OPS


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_deep_learning_model_gives_probabilities(batch: int, generator: torch.Generator) -> None:
    y = DeepLearningModel()(torch.rand(batch, 784, generator=generator))
    assert y.shape == (batch, 10)
    torch.testing.assert_close(y.sum(dim=1), torch.ones(batch))


@pytest.mark.parametrize("batch", [1, 2])
def test_net_gives_a_value_for_each_pooled_row(batch: int, generator: torch.Generator) -> None:
    y = Net()(torch.rand(batch, 3, 720, 480, generator=generator))
    assert y.shape == (batch * 16 * 358, 1)
    assert y.min() >= 0.5
    assert y.max() <= 1


def test_pretrained_classifies_held_out_digits() -> None:
    model = DeepLearningModel.pretrained()
    assert not model.training
    assert training.accuracy(model) >= 0.97


def test_docstring_and_metadata_tell_the_accuracy() -> None:
    right = round(training.accuracy(DeepLearningModel.pretrained()) * 355)
    with safe_open(training.DEFAULT_OUT, "pt") as file:
        about = file.metadata()["fastgraph"]
    assert f'"held_out_accuracy": {right / 355:.4f}' in about
    assert '"seed": 0' in about
    assert '"torch": ' in about
    documentation = DeepLearningModel.pretrained.__doc__ or ""
    assert f"{right / 355:.1%}".replace("%", " %") in documentation
    assert f"({right} of the 355 scans" in documentation


def test_pretrained_output_is_not_saturated() -> None:
    """Probabilities at 0 and 1 would hide errors of the layers before the softmax."""
    with torch.inference_mode():
        highest = DeepLearningModel.pretrained()(digits("all")[0]).max(dim=1).values
    assert highest.median() < 0.99


def test_training_is_repeatable(one_epoch: DeepLearningModel) -> None:
    torch.rand(7)  # whatever the state of the caller's generator
    again = training.train(epochs=1)
    assert training.serialized(again, 0.5) == training.serialized(one_epoch, 0.5)
    other_seed = training.train(epochs=1, seed=1)
    assert training.serialized(other_seed, 0.5) != training.serialized(one_epoch, 0.5)


def test_training_learns_and_returns_in_eval_mode(one_epoch: DeepLearningModel) -> None:
    assert not one_epoch.training
    assert training.accuracy(one_epoch) > 0.5  # one epoch; 0.1 is guessing


def test_training_leaves_the_callers_settings_alone() -> None:
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    training.train(epochs=1)
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("short_training")
def test_training_script_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one_epoch: DeepLearningModel
) -> None:
    out = tmp_path / "weights.safetensors"
    assert training.main(["--out", str(out)]) == 0
    assert f"held-out accuracy {training.accuracy(one_epoch):.2%}" in capsys.readouterr().out
    assert out.read_bytes() == training.serialized(one_epoch, training.accuracy(one_epoch))


@pytest.mark.usefixtures("short_training")
@pytest.mark.parametrize("place", [".", "nowhere/weights.safetensors"])
def test_training_script_refuses_what_is_no_file(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        training.main(["--out", str(tmp_path / place)])
    assert stopped.value.code == 2
    assert "--out must be a file in a folder that exists; got" in capsys.readouterr().err
