"""When packed weights are fresh, and when they are dropped."""

import gc

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fastgraph.kernels import weights
from fastgraph.kernels.weights import Packed, Snapshot


@pytest.fixture
def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.arange(6.0).view(2, 3))


def in_place(weight: torch.nn.Parameter) -> None:
    with torch.no_grad():
        weight.mul_(2)


def other_memory(weight: torch.nn.Parameter) -> None:
    weight.data = weight.data.clone()


@pytest.mark.parametrize("change", [in_place, other_memory])
def test_a_change_is_seen(change, weight: torch.nn.Parameter) -> None:
    for _ in range(20):
        snapshot = Snapshot([weight])
        assert snapshot.matches([weight])
        change(weight)
        assert not snapshot.matches([weight])


def test_the_memory_that_was_seen_is_not_given_to_another_tensor(weight: torch.nn.Parameter) -> None:
    """`.half().float()` could otherwise bring other values to the same address."""
    snapshot = Snapshot([weight])
    memory = StorageWeakRef(weight.untyped_storage())
    other_memory(weight)
    assert not memory.expired()
    del snapshot
    gc.collect()
    assert memory.expired()


def test_another_tensor_is_seen(weight: torch.nn.Parameter) -> None:
    snapshot = Snapshot([weight])
    assert not snapshot.matches([torch.nn.Parameter(weight.detach())])
    assert not snapshot.matches([weight, weight])
    assert not snapshot.matches([])


def test_inference_tensors_never_count_as_fresh() -> None:
    with torch.inference_mode():
        tensor = torch.ones(3)
    plain = torch.ones(3)
    for tensors in ([tensor], [plain, tensor], [tensor, plain]):
        assert Snapshot(tensors).seen is None
        assert not Snapshot(tensors).matches(tensors)


@pytest.mark.parametrize("unchanged", [weights._unchanged, weights._unchanged_in_python])
def test_tensors_that_are_only_read_need_no_version(unchanged, monkeypatch, weight: torch.nn.Parameter) -> None:
    monkeypatch.setattr(weights, "_unchanged", unchanged)
    with torch.inference_mode():
        read = torch.ones(3)
        other = torch.ones(3)
    snapshot = Snapshot([weight], [read])
    assert snapshot.matches([weight, read])
    with torch.inference_mode():
        read.mul_(2)
    assert snapshot.matches([weight, read])
    assert not snapshot.matches([weight, other])
    assert not snapshot.matches([weight])
    in_place(weight)
    assert not snapshot.matches([weight, read])
    assert Snapshot([], [read]).matches([read])


def test_packing_happens_once_for_each_state(weight: torch.nn.Parameter) -> None:
    calls = []
    packed = Packed(lambda tensors, factor: calls.append(factor) or tensors[0].sum().item() * factor)
    bias = torch.ones(2)
    assert packed.get([weight, None], 2) == packed.get([weight, None], 2) == 30
    assert packed.get([weight, bias], 3) == 45
    assert calls == [2, 3]
    in_place(weight)
    assert packed.get([weight, None], 2) == 60
    assert calls == [2, 3, 2]


def test_nothing_is_kept_of_tensors_without_a_version(weight: torch.nn.Parameter) -> None:
    packed = Packed(lambda tensors: tensors[0].sum().item())
    with torch.inference_mode():
        bias = torch.ones(2)
    assert packed.get([weight, bias]) == 15
    assert packed.get([bias, weight]) == 2
    assert len(packed._entries) == 0
    with torch.inference_mode():
        bias.add_(1)
    assert packed.get([bias, weight]) == 4


def test_entries_go_with_their_tensor_and_are_few(weight: torch.nn.Parameter) -> None:
    packed = Packed(lambda tensors: object())
    for _ in range(50):
        in_place(weight)
        packed.get([weight])
    assert len(packed._entries[weight]) <= 4
    for _ in range(10):
        packed.get([torch.ones(3)])
    gc.collect()
    assert len(packed._entries) == 1
