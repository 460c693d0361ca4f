"""Collected only where Triton's interpreter is on (it has to be before Triton is imported)."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True)
def no_saved_choices(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    """No table that a user may have measured."""
    from fastgraph.kernels.cuda import choices

    monkeypatch.setenv("FASTGRAPH_CUDA_CHOICES", os.path.join(tmp_path, "none.json"))
    choices.table.cache_clear()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small matrices: threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def silent_arithmetic() -> Iterator[None]:
    """The interpreter computes in NumPy, which warns of what is meant: infinities, NaN, exponentials that overflow."""
    with np.errstate(all="ignore"):
        yield
