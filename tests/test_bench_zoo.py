"""The zoo: which networks a command line means, that they are the same everywhere, and that their outputs tell."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from fastgraph.bench import arguments, cli
from fastgraph.bench.backends import Setting
from fastgraph.bench.ceilings.work import work_of
from fastgraph.bench.check import reference
from fastgraph.bench.zoo import cases as zoo
from fastgraph.bench.zoo.cases import build, is_zoo, zoo_cases
from fastgraph.bench.zoo.entry import Entry, photos
from fastgraph.bench.zoo.libraries import torchvision_entry
from fastgraph.bench.zoo.table import ZOO
from fastgraph.bench.zoo.weights import informative
from fastgraph.export.user_model import UsageError

SMALL = [name for name, entry in ZOO.items() if entry.package is None]


def chosen(*argv: str) -> list[str]:
    """The names of the cases that a command line means."""
    return [case.name for case in cli.chosen_cases(arguments.parser().parse_args(argv))]


def test_zoo_is_all_of_it_and_names_are_some() -> None:
    assert {case.model for case in zoo_cases("zoo", lambda entry: entry.batches)} == {e.title for e in ZOO.values()}
    assert len({entry.title for entry in ZOO.values()}) == len(ZOO) == 22
    assert chosen("--model", "zoo:dlrm, lenet5,dlrm") == [
        "DLRM, batch 1", "DLRM, batch 64", "LeNet-5, batch 1", "LeNet-5, batch 64",
    ]  # fmt: skip
    assert chosen("--model", "zoo:resnet18") == ["ResNet-18, batch 1"]


def test_batches_are_those_of_the_mode_or_the_ones_asked_for() -> None:
    both = ("--model", "zoo:nerf,unet")
    assert chosen(*both, "--quick") == ["NeRF, batch 1", "U-Net 128², batch 1"]
    assert chosen(*both, "--processes", "2") == chosen(*both, "--mode", "single-stream") == chosen(*both, "--quick")
    assert chosen(*both, "--mode", "offline") == ["NeRF, batch 1024", "U-Net 128², batch 16"]
    assert chosen("--model", "zoo:nerf", "--batches", "3", "--mode", "offline") == ["NeRF, batch 3"]


def test_the_zoo_has_peers_that_compile_in_little_time() -> None:
    parse = arguments.parser().parse_args
    assert cli.chosen_backends(parse(["--model", "zoo"])) == list(arguments.ZOO_BACKENDS)
    assert cli.chosen_backends(parse(["--model", "torchvision:alexnet"])) == list(arguments.ZOO_BACKENDS)
    assert len(cli.chosen_backends(parse(["--model", "zoo", "--backends", "all"]))) > len(arguments.ZOO_BACKENDS)
    assert cli.chosen_backends(parse(["--model", "zoo", "--quick"])) == list(cli.QUICK_BACKENDS)


def test_a_module_of_ones_own_is_not_taken_for_a_library() -> None:
    assert [is_zoo(name) for name in ("zoo", "zoo:a", "torchvision:a", "timm:a")] == [True] * 4
    assert not any(is_zoo(name) for name in ("torchvision.models:alexnet", "zoology:make", "deep"))


@pytest.mark.parametrize(
    ("target", "shape", "message"),
    [
        ("zoo:resnet19", None, "--model zoo:NAME needs some of lenet5, mnist, .*; got 'resnet19'"),
        ("zoo:", None, "--model zoo:NAME needs a network's name; got 'zoo:'"),
        ("zoo:dqn,", None, "needs a network's name; got 'zoo:dqn,'"),
        ("zoo:dqn", (1, 4, 84, 84), "--input-shape is for a model of your own or of a library"),
        ("torchvision:alexnett", None, "torchvision has no classifier 'alexnett'; do you mean alexnet"),
        ("torchvision:fcn_resnet50", None, "torchvision has no classifier 'fcn_resnet50'"),
        (
            "torchvision:squeezenet1_1",
            (1, 5, 64, 64),
            r"torchvision:squeezenet1_1 cannot be called on \[1, 5, 64, 64\]",
        ),
        ("torchvision:mnasnet0_5", (1, 5, 64, 64), "torchvision:mnasnet0_5 cannot be made: RuntimeError: Given groups"),
    ],
)
def test_what_cannot_be_had_is_named(target: str, shape: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        zoo_cases(target, lambda _: [1], shape)


def test_torchvisions_images_are_those_it_is_trained_for() -> None:
    assert torchvision_entry("inception_v3").example(2).shape == (2, 3, 299, 299)
    assert torchvision_entry("alexnet").example(1).shape == (1, 3, 224, 224)
    (case,) = zoo_cases("torchvision:squeezenet1_1", lambda _: [3], (1, 3, 64, 64))
    assert case.name == "torchvision squeezenet1_1, batch 3"
    assert pickle.loads(pickle.dumps(case)).build().x.shape == (3, 3, 64, 64)


def test_without_timm_its_pip_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="--model timm:resnet18 needs timm: pip install timm"):
        zoo_cases("timm:resnet18", lambda _: [1])


def test_timms_networks_are_made_by_name_at_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("timm")
    asked: list[tuple[str, bool]] = []

    def create_model(name: str, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    fake.__dict__.update(
        is_model=lambda name: name == "tiny",
        list_models=lambda: ["tiny"],
        get_pretrained_cfg=lambda name: SimpleNamespace(input_size=(3, 20, 24)),
        create_model=create_model,
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    (case,) = zoo_cases("timm:tiny", lambda entry: entry.batches)
    assert (case.name, case.build().x.shape) == ("timm tiny, batch 1", (1, 3, 20, 24))
    assert asked == [("tiny", False)]
    with pytest.raises(UsageError, match="timm has no classifier 'tini'; do you mean tiny"):
        zoo_cases("timm:tini", lambda _: [1])


def test_every_process_makes_the_same_network() -> None:
    """Whatever its threads and the state of its random numbers."""
    states = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(threads)
        before = torch.get_rng_state()
        zoo._model.cache_clear()
        states.append(build("zoo", "cifar_vgg", None, 1).model.state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    first, second = states
    assert first["1.running_mean"].data_ptr() != second["1.running_mean"].data_ptr()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", SMALL)
def test_outputs_differ_from_sample_to_sample(name: str) -> None:
    entry = ZOO[name]
    built = build("zoo", name, None, 3)
    assert not built.model.training
    assert built.x.shape == entry.example(3).shape
    assert torch.equal(built.x, entry.example(3))
    with torch.inference_mode():
        y = built.model(built.x)
    assert y.shape[0] == 3
    assert 1e-3 < y.abs().max() < 1e3
    assert (y[0] - y[1]).abs().mean() > 1e-2 * y[0].abs().mean()


class Silent(nn.Module):
    """As people initialise layers, its blocks and its head do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 1e-6))
        self.layer_norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer_norm((self.scale * self.norm(self.conv(x)).relu()).mean((2, 3))))


def test_no_layer_is_the_identity() -> None:
    x = photos(3, 12, 12)(4)
    model = informative(Silent, x)
    for name, parameter in model.named_parameters():
        assert parameter.min() < parameter.max(), name
    assert model.scale.abs().min() > 0.1
    with torch.inference_mode():
        convolved = model.conv(x)
    torch.testing.assert_close(model.norm.running_mean, convolved.mean((0, 2, 3)), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(model.norm.running_var, convolved.var((0, 2, 3)), rtol=1e-2, atol=1e-3)
    with torch.inference_mode():
        y = model(x)
    assert (y[0] - y[1]).abs().mean() > 1e-2 * y.abs().mean()


@pytest.mark.parametrize("name", ["text_cnn", "dlrm"])
def test_ids_stay_ids_in_every_dtype(name: str) -> None:
    built = build("zoo", name, None, 2)
    assert built.x.dtype == torch.int64
    single, half = (reference(built, Setting(dtype)) for dtype in ("fp32", "bf16"))
    assert single.eager_error < half.eager_error < 0.1
    assert torch.equal(single.output, half.output)


def test_tables_of_embeddings_are_not_read_as_a_whole() -> None:
    built = build("zoo", "text_cnn", None, 2)
    work = work_of(built, Setting())
    assert work is not None
    convs = sum(128 * 100 * width + 100 for width in (3, 4, 5))
    assert work.weight_bytes == 4 * (convs + 300 * 4 + 4)
    assert work.input_bytes == 2 * 64 * 8


def test_a_package_that_a_network_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("x", nn.Identity, photos(1, 1, 1), package="torchvision")
    monkeypatch.setitem(ZOO, "resnet18", entry)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError, match="--model zoo:resnet18 needs torchvision: pip install"):
        zoo_cases("zoo:resnet18", lambda _: [1])


def test_the_share_in_fused_kernels_is_reported(tmp_path: Path) -> None:
    argv = [
        "--quick",
        "--budget",
        "0.1",
        "--model",
        "zoo:tabular,text_cnn",
        "--backends",
        "eager,fastgraph",
        "--threads",
        "1",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *argv, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "report.json").read_text())["cases"]
    shares = {(case["model"], row["backend"]): row["fused"] for case in cases for row in case["rows"]}
    assert shares["ReLU-BN tabular", "eager"] is None
    assert shares["ReLU-BN tabular", "fastgraph"] > 0.9
    assert 0 <= shares["text CNN", "fastgraph"] <= 1
    assert {row["status"] for case in cases for row in case["rows"]} == {"ok"}
    assert "Geometric mean of x peer over 2 cases" in done.stdout
    assert "fused" in done.stdout
