"""How an op reaches its Triton kernels: called eagerly on CUDA tensors, and in a trace that Inductor will compile.

`kernels/<op>/cuda.py`, where there is one, is imported with the first CUDA tensor. It has `refusal(*arguments)`, why
the kernels do not take the arguments; `run(*arguments, target=...)`; and `describe(*arguments, target=...)`, which plan
runs when, and why.
"""

import functools
import importlib
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch._subclasses.functional_tensor import FunctionalTensorMode

from fastgraph.kernels.cuda.measure import measure
from fastgraph.kernels.cuda.target import has_triton, target_of, unavailable


def kernel_itself(kernel: Any) -> Any:
    """Launches at once."""
    provide_scratch()
    return kernel


def kernel_in_trace(kernel: Any) -> Any:
    """Leaves a node in the graph, which Inductor compiles with what is around it."""
    return torch.library.wrap_triton(kernel)


def provide_scratch() -> None:
    """Tensor descriptors are written to memory that Triton asks an allocator for; one that the user has set stays.

    An allocator belongs to a Python thread. Inductor sets one where it first launches a kernel, and no other.
    """
    if not has_triton():
        return
    from triton.runtime import _allocation

    if isinstance(_allocation._allocator.get(), _allocation.NullAllocator):
        _allocation.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device="cuda"))


@functools.cache
def _module(name: str) -> ModuleType | None:
    """The op's kernels on CUDA; None where it has none."""
    folder = f"fastgraph.kernels.{name}"
    has_kernels = find_spec(folder) is not None and find_spec(f"{folder}.cuda") is not None
    return importlib.import_module(f"{folder}.cuda") if has_kernels else None


def _kernels(name: str) -> ModuleType:
    """Those of an op that `why_aten` has no objection to."""
    module = _module(name)
    assert module is not None
    return module


def why_aten(name: str, arguments: tuple[Any, ...]) -> str | None:
    """Why an op on CUDA tensors runs through ATen; None where its Triton kernels run."""
    input = arguments[0]
    if (reason := unavailable(input.device, input.dtype)) is not None:
        return reason
    module = _module(name)
    refusal: str | None = "it has no kernel on CUDA" if module is None else module.refusal(*arguments)
    return refusal


def describe(name: str, arguments: tuple[Any, ...]) -> tuple[str, str]:
    """What runs an op on CUDA tensors, real or fake: (kernels, the reason of what is not as it could be)."""
    reason = why_aten(name, arguments)
    if reason is not None:
        return "ATen", reason
    target = target_of(arguments[0].device, kernel_itself)
    plan, reason = _kernels(name).describe(*arguments, target=target)
    kind = target.kind(arguments[0].dtype)
    return f"Triton, {target.architecture.name}, {kind}: {plan}", reason or ""


def tune(name: str, arguments: tuple[Any, ...]) -> None:
    """Measures every way to compute an op on these tensors, and keeps the fastest (`kernels.cuda.choices`).

    Nothing where Triton kernels do not run: on other devices, and for what they do not take.
    """
    if arguments[0].device.type == "cuda" and why_aten(name, arguments) is None:
        with torch.cuda.device(arguments[0].device):
            for trials in _kernels(name).trials(*arguments, target=target_of(arguments[0].device, kernel_itself)):
                measure(trials)


def register(
    library: torch.library.Library, name: str, check: Callable[..., None], aten: Callable[..., torch.Tensor]
) -> None:
    """Gives an op its CUDA implementation. `aten` is the op by ATen, for what the kernels do not take.

    In a trace the op becomes its kernels, as torch.library.triton_op would make it; torch.export keeps the op, since an
    exported program names no kernels.
    """

    def implementation(launch: Callable[[Any], Any], arguments: tuple[Any, ...]) -> torch.Tensor:
        check(*arguments)
        if why_aten(name, arguments) is not None:
            return aten(*arguments)
        result: torch.Tensor = _kernels(name).run(*arguments, target=target_of(arguments[0].device, launch))
        return result

    def eager(*arguments: Any) -> torch.Tensor:
        with torch.cuda.device(arguments[0].device):  # Triton launches on the current device
            return implementation(kernel_itself, arguments)

    def decomposed(mode: Any, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from torch.export._trace import custom_triton_ops_decomposition_disabled

        if args[0].device.type != "cuda" or custom_triton_ops_decomposition_disabled():
            return mode.__torch_dispatch__(func, types, args, kwargs)
        with mode:
            return implementation(kernel_in_trace, args)

    library.impl(name, eager, "CUDA")
    torch.library.register_torch_dispatch(f"fastgraph::{name}", FunctionalTensorMode, decomposed, lib=library)
