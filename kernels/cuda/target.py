"""Where a kernel goes: an architecture, a precision, and how to launch."""

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastgraph.kernels.cuda.architecture import Architecture, architecture_of, processors_of

PRECISIONS = ("ieee", "tf32x3", "tf32")


@dataclass(frozen=True)
class Target:
    """`launch(kernel)` is what is indexed by the grid and called: the kernel itself, or its wrapper in a trace."""

    architecture: Architecture
    precision: str  # of products of fp32 operands, one of PRECISIONS
    processors: int
    launch: Callable[[Any], Any]

    def kind(self, dtype: torch.dtype) -> str:
        """How products are computed: the dtype of 16-bit operands, the precision of fp32 ones."""
        return self.precision if dtype is torch.float32 else str(dtype).removeprefix("torch.")


def fp32_precision(architecture: Architecture) -> str:
    """How fp32 operands are multiplied: as PyTorch is set to, "ieee" or "tf32".

    tf32 where torch.backends.cuda.matmul allows it, which torch.set_float32_matmul_precision("high" | "medium") does.
    For "tf32x3", three products of tf32 with nearly the accuracy of fp32, PyTorch has no word: the environment variable
    FASTGRAPH_CUDA_FP32 forces one of PRECISIONS. An architecture that has no such products multiplies in fp32.
    """
    forced = os.environ.get("FASTGRAPH_CUDA_FP32")
    if forced and forced not in PRECISIONS:
        raise RuntimeError(f"FASTGRAPH_CUDA_FP32: needs one of {', '.join(PRECISIONS)}, got {forced!r}")
    precision = forced or ("tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee")
    return precision if precision in fp32_precisions(architecture) else "ieee"


def fp32_precisions(architecture: Architecture) -> tuple[str, ...]:
    """How an architecture can multiply fp32 operands."""
    if architecture.is_amd:
        return ("ieee", "tf32")
    return PRECISIONS if architecture.number >= 80 else ("ieee",)


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no Triton kernel runs on tensors of this device and dtype; None if they do."""
    if not has_triton():
        return "Triton is not installed"
    architecture = architecture_of(device)
    if isinstance(architecture, str):
        return architecture
    if not architecture.takes(dtype):
        return f"{str(dtype).removeprefix('torch.')} on {architecture.name}"
    return None


def target_of(device: torch.device, launch: Callable[[Any], Any]) -> Target:
    """The target that a CUDA device is; only where nothing is `unavailable`."""
    architecture = architecture_of(device)
    assert isinstance(architecture, Architecture)
    return Target(architecture, fp32_precision(architecture), processors_of(device), launch)


def activation_code(names: list[str], order: tuple[str, ...]) -> int:
    """A layer's activations as the number that `kernels.cuda.functions.activate` reads.

    Decimal digits from the lowest: the first, second, ... elementwise one by its place in `order`; above the fourth
    digit softmax or log_softmax.
    """
    code = 0
    for position, name in enumerate(names):
        number = order.index(name)
        code += number * (10**4 if name in ("softmax", "log_softmax") else 10**position)
    return code


def padded(size: int) -> int:
    """The next power of two, at least 16: the least extent of a matrix product in Triton."""
    return max(16, 1 << (size - 1).bit_length())


def cdiv(a: Any, b: int) -> Any:
    """a / b rounded up, of numbers and of symbols."""
    return (a + b - 1) // b
