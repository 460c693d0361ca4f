"""Fixtures that every room's tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fastgraph.kernels import native
from fastgraph.kernels.cuda import choices
from fastgraph.models import DeepLearningModel, Net
from tests.reference import scaled

_module = native.kernels()
ISAS = _module.isas() if _module else []


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `cuda` are skipped here, so that the report has one line for all of them."""
    if item.get_closest_marker("cuda") is not None and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU on this machine")


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of random numbers."""
    return torch.Generator().manual_seed(20)


@pytest.fixture(params=ISAS or [pytest.param(None, marks=pytest.mark.skip("no compiled kernels"))])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine has, in use while the test runs."""
    assert _module is not None
    before = _module.isa()
    assert _module.select_isa(request.param)
    assert _module.isa() == request.param
    yield request.param
    _module.select_isa(before)


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    """Tests may change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A table of measured choices on CUDA of the test's own, empty at first."""
    monkeypatch.setenv("FASTGRAPH_CUDA_CHOICES", str(tmp_path / "choices.json"))
    choices.table.cache_clear()
    yield tmp_path / "choices.json"
    choices.table.cache_clear()


@pytest.fixture
def deep() -> nn.Module:
    """DeepLearningModel whose outputs depend on the input."""
    torch.manual_seed(5)
    return scaled(DeepLearningModel())


@pytest.fixture
def net() -> nn.Module:
    """Net whose outputs depend on the input."""
    torch.manual_seed(6)
    return scaled(Net())
