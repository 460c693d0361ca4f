"""save and load: whole files come back, all others are refused with what is wrong."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fastgraph
from fastgraph.models import DeepLearningModel, Net
from tests.reference import random
from tests.test_capture import Flexible
from tests.test_rewrite_simplify import randomised


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model.fastgraph"
    fastgraph.save(fastgraph.optimize(DeepLearningModel().eval(), (torch.zeros(1, 784),)), path)
    return path


def shared_and_plain() -> nn.Module:
    """Tied weights, a batch-norm, a tensor that is no parameter, a frozen parameter."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 5, 3), randomised(nn.BatchNorm2d(5))
            self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
            self.second.weight = self.first.weight
            self.shift = torch.arange(5.0)
            self.first.bias.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.conv(x)).mean((2, 3))
            return self.second(torch.relu(self.first(x))) + self.shift * x.shape[0]

    return Model()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (DeepLearningModel(), (1, 784)),
        (Net(), (1, 3, 720, 480)),
        (shared_and_plain(), (2, 3, 9, 9)),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Flatten(1), nn.LazyLinear(3)), (2, 3, 5, 5)),
    ],
    ids=["deep", "net", "shared", "flatten"],
)
def test_round_trip(model: nn.Module, shape: tuple[int, ...], tmp_path: Path, generator: torch.Generator) -> None:
    x = random(generator, shape)
    model(x)  # a lazy layer gets its size
    fast = fastgraph.optimize(model.eval(), (x,))
    path = tmp_path / "model.fastgraph"
    fastgraph.save(fast, path)
    loaded = fastgraph.load(path)
    with torch.no_grad():
        for batch in (x, torch.cat([x, x, x])):
            assert torch.equal(loaded(batch), fast(batch))
    assert [(n, p.requires_grad) for n, p in loaded.named_parameters()] == [
        (n, p.requires_grad) for n, p in fast.named_parameters()
    ]
    assert list(loaded.state_dict()) == list(fast.state_dict())
    assert [r.becomes for r in loaded.explain()] == [r.becomes for r in fast.explain()]
    assert [r.shape for r in loaded.explain()] == [r.shape for r in fast.explain()]
    with pytest.raises(RuntimeError, match="dimensions"):
        loaded(x[0])
    fastgraph.save(loaded, path)
    with torch.no_grad():
        assert torch.equal(fastgraph.load(path)(x), fast(x))


def test_structures_conditions_dtype_and_training(tmp_path: Path, generator: torch.Generator) -> None:
    path = tmp_path / "model.fastgraph"
    fastgraph.save(fastgraph.optimize(Flexible(), (torch.ones(2, 3), (torch.ones(2, 3), 4))), path)
    loaded = fastgraph.load(path)
    assert loaded(torch.ones(5, 3), (torch.ones(5, 3), 4))["sum"].tolist() == [[5.0] * 3] * 5
    with pytest.raises(RuntimeError, match="needs the value of the example, 4, got 5"):
        loaded(torch.ones(2, 3), (torch.ones(2, 3), 5))

    fast = fastgraph.optimize(DeepLearningModel().eval(), (torch.zeros(2, 784),), dtype=torch.bfloat16)
    fastgraph.save(fast, path)
    loaded = fastgraph.load(path)
    x = random(generator, (3, 784))
    with torch.no_grad():
        assert torch.equal(loaded(x), fast(x))
    with pytest.raises(RuntimeError, match=r"needs x.shape\[1\] == 784"):
        loaded(torch.ones(2, 783))
    optimizer = torch.optim.SGD(loaded.parameters(), lr=1.0)
    loaded(x)[:, 0].sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(loaded(x), fast(x))


def test_no_pickle_in_the_file(saved: Path) -> None:
    data = saved.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    assert metadata["format"] == "fastgraph"
    program = json.loads(metadata["program"])
    assert next(n["target"] for n in program["nodes"] if n["op"] == "call_function") == "aten.linear.default"


@pytest.mark.parametrize("size", [0, 3, 8, 100, 5000, -1])
def test_truncated(size: int, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"short: truncated: "):
        fastgraph.load(path)


@pytest.mark.parametrize("position", [12, 3000, 20000, -5])
def test_damaged(position: int, saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[position] ^= 0x10
    path = tmp_path / "broken"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="broken: (damaged: |truncated: |not a fastgraph file)"):
        fastgraph.load(path)


def test_a_flipped_bit_in_a_weight_is_damage(saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-1000] ^= 1
    path = tmp_path / "broken"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="broken: damaged: its contents do not have the checksum"):
        fastgraph.load(path)


def test_foreign_files(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    for data in (b"PK\x03\x04" + b"x" * 100, b"\x80\x04" + b"x" * 100, b"hello, this is a text file\n"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="foreign: not a fastgraph file"):
            fastgraph.load(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="foreign: not a fastgraph file: a safetensors file of another program"):
        fastgraph.load(path)
    with pytest.raises(FileNotFoundError):
        fastgraph.load(tmp_path / "nothing")


def test_another_version(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "future"
    path.write_bytes(saved.read_bytes().replace(b'"version":"1"', b'"version":"9"'))
    with pytest.raises(ValueError, match="future: format version 9, this fastgraph reads version 1"):
        fastgraph.load(path)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="module: needs the result of fastgraph.optimize, got Linear"):
        fastgraph.save(nn.Linear(2, 2), tmp_path / "x")

    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))

    with pytest.raises(ValueError, match=r"module: .* which a file cannot hold"):
        fastgraph.save(fastgraph.optimize(Branch(), (torch.ones(3),)), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")
    monkeypatch.setattr("fastgraph.serialization.os.replace", lambda *a: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        fastgraph.save(fastgraph.load(saved), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
