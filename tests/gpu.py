"""A stand-in for a GPU, for what can be proven without one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree


class StandInDriver:
    """All that tracing asks of Triton's driver: what to compile for."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@contextmanager
def stand_in_gpu(monkeypatch: pytest.MonkeyPatch, name: str = "sm_90") -> Iterator[FakeTensorMode]:
    """CUDA tensors are fake ones of this mode, on a GPU of this architecture: graphs can be traced, nothing runs.

    `name`: one of `ARCHITECTURES`, or why the kernels do not run on the GPU.
    """
    import triton

    from fastgraph.kernels.cuda import target
    from fastgraph.kernels.cuda.architecture import ARCHITECTURES

    architecture = ARCHITECTURES.get(name, name)
    monkeypatch.setattr(target, "architecture_of", lambda device: architecture)
    monkeypatch.setattr(target, "processors_of", lambda device: ARCHITECTURES[name].processors)
    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(StandInDriver())
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        triton.runtime.driver._active = before


def on_cuda(value: Any) -> Any:
    """Fake CUDA tensors in the place of all tensors; inside a `stand_in_gpu`."""
    make = lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda")  # noqa: E731
    return pytree.tree_map(lambda v: make(v) if isinstance(v, torch.Tensor) else v, value)
