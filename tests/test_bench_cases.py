"""The cases: real data, outputs that tell right from wrong, models of one's own, and the targets of perf."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from fastgraph.bench import cases
from fastgraph.bench.cases import informative_net, variants
from fastgraph.bench.perf import targets
from fastgraph.bench.perf.target import Target
from fastgraph.bench.user_model import UsageError, load, user_cases
from fastgraph.data import digits, photograph


def test_cases_are_both_models_on_real_data() -> None:
    made = [*cases.deep([1, 1024]), *cases.net([1])]
    assert [case.name for case in made] == [
        "DeepLearningModel, batch 1",
        "DeepLearningModel, batch 1024",
        "Net, batch 1",
    ]
    built = [case.build() for case in made]
    assert all(not one.model.training and one.x.dtype == torch.float32 for one in built)
    assert torch.equal(built[1].x, digits("all")[0][:1024])
    assert torch.equal(built[2].x, photograph())
    assert [one.held_out is not None for one in built] == [True, True, False]


def test_a_batch_beyond_the_digits_begins_again() -> None:
    x = cases.build_deep(2000).x
    assert x.shape == (2000, 784)
    assert torch.equal(x[1797:], x[:203])


def test_cases_travel_to_other_processes() -> None:
    for case in [*cases.deep([2]), *cases.chain((5, 3), "gelu", [2]), *cases.conv(2, 5, 2, [1])]:
        again = pickle.loads(pickle.dumps(case))
        assert (again.name, again.batch) == (case.name, case.batch)
        assert torch.equal(again.build().x, case.build().x)


def test_photographs_of_a_batch_differ_and_stay_in_range() -> None:
    photos = variants(photograph(), 16)
    assert photos.abs().max() <= 1
    assert torch.equal(photos[:1], photograph())
    for i in range(16):
        for j in range(i):
            assert (photos[i] - photos[j]).abs().mean() > 0.01


def test_net_tells_right_from_wrong() -> None:
    torch.manual_seed(20)
    before = torch.get_rng_state()
    informative_net.cache_clear()
    net = informative_net()
    assert torch.equal(torch.get_rng_state(), before)
    informative_net.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), informative_net().parameters(), strict=True))
    with torch.inference_mode():
        y = net(photograph())
    assert (y == 0.5).float().mean() < 0.2
    assert (y > 0.999).float().mean() < 0.01
    assert y.std() > 0.05


OTHERS = [target for target in targets.targets("fp32") if target.group in ("chains", "convs")]


@pytest.mark.parametrize("target", OTHERS, ids=lambda target: target.case.name)
def test_other_shapes_have_outputs_that_differ(target: Target) -> None:
    built = target.case.build()
    with torch.inference_mode():
        y = built.model(built.x)
    assert y.shape[0] == target.case.batch
    assert y.flatten(1).std(dim=0).max() > 1e-3
    assert y.abs().max() < 1e3


def test_targets_are_those_that_were_set() -> None:
    fp32, bf16 = targets.choose([], "fp32"), targets.choose([], "bf16")
    by_name = {target.case.name: target for target in fp32}
    assert (by_name["DeepLearningModel, batch 1"].ratio, by_name["DeepLearningModel, batch 1"].share) == (1.6, 0.8)
    assert (by_name["Net, batch 4"].ratio, by_name["Net, batch 4"].share) == (2.2, 0.8)
    assert by_name["DeepLearningModel, batch 8192"].ratio == 1.05
    assert all(target.ratio == 1.1 and target.whole_tiles for target in fp32 if target.group in ("chains", "convs"))
    assert {target.case.batch: target.fp32_ratio for target in bf16 if target.group == "deep"} == {
        **dict.fromkeys((2, 4, 8, 16, 32, 64), None),
        1: 1.5,
        **dict.fromkeys((128, 1024, 8192), 1.7),
    }
    assert [t.case.name for t in targets.choose(["deep:16", "net"], "fp32")] == [
        "DeepLearningModel, batch 16", "Net, batch 1", "Net, batch 4", "Net, batch 16",
    ]  # fmt: skip


def good() -> nn.Module:
    return nn.Linear(6, 3)


def no_module() -> int:
    return 3


def no_tensor() -> nn.Module:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    return Pair()


def failing() -> nn.Module:
    raise ValueError("no weights")


def test_a_model_of_ones_own() -> None:
    first, second = user_cases(f"{__name__}:good", (1, 6), [1, 3])
    assert (first.name, second.name) == ("good, batch 1", "good, batch 3")
    built = second.build()
    assert built.x.shape == (3, 6)
    assert not built.model.training
    assert torch.equal(built.x, second.build().x)


def test_every_process_makes_the_same_model() -> None:
    """A model with random weights is made by each worker for itself."""
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        load.cache_clear()
        models.append(load(f"{__name__}:good"))
    first, second = models
    assert first is not second
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "a model must be deep, net, all or module:callable; got 'nothing'"),
        ("no.such:thing", "no.such:thing cannot be imported: ModuleNotFoundError"),
        (f"{__name__}:absent", "cannot be imported: AttributeError"),
        (f"{__name__}:no_module", "must give a torch.nn.Module; got int"),
        (f"{__name__}:failing", "raised ValueError: no weights"),
        (f"{__name__}:no_tensor", "must give one floating tensor with a batch axis; got tuple"),
    ],
)
def test_a_model_that_cannot_be_had_is_named(target: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        user_cases(target, (1, 6), [1])
    assert message in str(raised.value)


def test_a_wrong_input_shape_is_named() -> None:
    with pytest.raises(UsageError, match=r"cannot be called on \[1, 7\]: RuntimeError"):
        user_cases(f"{__name__}:good", (1, 7), [1])


def test_a_module_that_fails_to_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_model.py").write_text("raise RuntimeError('half written')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="broken_model:make cannot be imported: RuntimeError: half written"):
        user_cases("broken_model:make", (1, 6), [1])
