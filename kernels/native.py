"""The compiled CPU kernels: whether they are there, and which instruction set they use.

The environment variable `FASTGRAPH_CPU` forces one of `CAPABILITIES` for the whole process. Without it the best
vector instruction set of the machine is used, or ATen where there is none ("scalar" has to be asked for: it shows that
every path gives the same bits, and is slower than ATen).
"""

import importlib
import os
import platform
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, overload

import torch
from torch._subclasses.fake_tensor import FakeTensor

CAPABILITIES = ("avx512_bf16", "avx512", "avx2", "scalar", "aten")
UNVERSIONED = "parameters made in inference_mode have no version: a change could not be seen"
TAKEN = ({torch.float32}, {torch.bfloat16})  # dtypes of weights

_native: ModuleType | None = None
_missing = ""
try:
    _native = importlib.import_module("fastgraph.kernels._native")
except ImportError as error:
    _missing = str(error)


def _choose(forced: str | None, supported: list[str]) -> str:
    """The capability to use; `supported` are the native library's ISAs that this machine has, best first."""
    if not forced:
        vector = [name for name in supported if name != "scalar"]
        return vector[0] if vector else "aten"
    choices = [*supported, "aten"]
    if forced not in choices:
        known = "is not supported here" if forced in CAPABILITIES else "is unknown"
        raise RuntimeError(f"FASTGRAPH_CPU: {forced!r} {known}; choices on this machine: {', '.join(choices)}")
    return forced


def _no_kernels(machine: str, reason: str) -> str:
    """Why calls on the CPU run through ATen, and what helps: a wheel that was built without a compiler is cached."""
    if machine.lower() not in ("x86_64", "amd64"):
        return f"fastgraph: no compiled kernels for {machine}, they are for x86-64; running through ATen"
    return (
        f"fastgraph: no compiled kernels, running through ATen ({reason}); with a C++17 compiler at hand: pip install "
        "--no-cache-dir --force-reinstall --no-deps fastgraph, or the folder that it was installed from"
    )


_capability = _choose(os.environ.get("FASTGRAPH_CPU"), _native.isas() if _native else [])
if _native is None and "FASTGRAPH_CPU" not in os.environ:
    warnings.warn(_no_kernels(platform.machine(), _missing), RuntimeWarning, stacklevel=2)
elif _native is not None and os.environ.get("FASTGRAPH_CPU") and _capability != "aten":
    _native.select_isa(_capability)


@dataclass(frozen=True)
class Family:
    """A table of kernels, of which the best row is used that this processor can run."""

    name: str  # "gemm_f32", "gemm_bf16", ...
    row: str  # the row in use
    gain: float | None  # measured speed of the best row that can be had against the next, where features may be slower


@dataclass(frozen=True)
class CpuDetails:
    """What `cpu_capability(details=True)` returns."""

    capability: str
    features: dict[str, bool]  # by their names in /proc/cpuinfo: the processor has it and the system lets it be used
    families: tuple[Family, ...]

    def __str__(self) -> str:
        features = " ".join(name for name, is_there in self.features.items() if is_there) or "none that matters here"
        lines = [f"{self.capability}; the processor has {features}"]
        for family in self.families:
            measured = "" if family.gain is None else f" (measured: the best row has {family.gain:.2f} times the speed)"
            lines.append(f"{family.name}: {family.row}{measured}")
        return "\n".join(lines)


@overload
def cpu_capability(*, details: Literal[False] = False) -> str: ...
@overload
def cpu_capability(*, details: Literal[True]) -> CpuDetails: ...
def cpu_capability(*, details: bool = False) -> str | CpuDetails:
    """What CPU calls run on: "avx512_bf16" (AVX-512 with bf16 dot products), "avx512", "avx2", "scalar", or "aten".

    "aten" means that the compiled kernels are not used.
    details: a `CpuDetails` instead, with the processor's features and the kernels in use; print it.
    """
    if not details:
        return _capability
    if _native is None or _capability == "aten":
        return CpuDetails(_capability, _native.features() if _native else {}, ())
    families = tuple(Family(name, row, gain or None) for name, row, gain in _native.families())
    return CpuDetails(_capability, _native.features(), families)


def isa() -> str:
    """The capability for which weights are packed now."""
    return _native.isa() if _native else "aten"


def kernels() -> ModuleType | None:
    """The compiled module, or None where CPU calls run through ATen."""
    return _native if _capability != "aten" else None


def library() -> ModuleType | None:
    """The compiled module, for what is no kernel: there also where CPU calls run through ATen by choice."""
    return _native


def takes(*weights: torch.Tensor | None) -> bool:
    """Whether the compiled kernels can be used with these weights."""
    return refusal(*weights) is None


def refusal(*weights: torch.Tensor | None) -> str | None:
    """Why the compiled kernels cannot be used with these weights, as a phrase, or None where they can.

    They take what is dense in the CPU's memory, all fp32 or all bf16, and has a version, since packed values are kept.
    Fake tensors stand for such tensors if they have the same dtype and device.
    """
    if _capability == "aten":
        return "no compiled kernels are in use (cpu_capability is aten)"
    present = [t for t in weights if t is not None]
    about_each = next((reason for t in present if (reason := _refusal_of(t))), None)
    if about_each is not None:
        return about_each
    dtypes = {t.dtype for t in present}
    return None if dtypes in TAKEN else _refusal_of_dtypes(dtypes)


def _refusal_of(weight: torch.Tensor) -> str | None:
    if not weight.is_cpu:
        return f"a weight on {weight.device} has no kernel on the CPU"
    if weight.layout is not torch.strided:
        return f"a weight of layout {weight.layout} has no kernel on the CPU"
    if not is_plain(weight):
        return "a weight whose values are not in memory as they are (negated, or zeros) has no kernel on the CPU"
    if isinstance(weight, FakeTensor):
        return None
    if type(weight).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return f"a weight of type {type(weight).__name__}, with operators of its own, has no kernel on the CPU"
    if weight.is_inference():
        return UNVERSIONED
    return None


def _refusal_of_dtypes(dtypes: set[torch.dtype]) -> str:
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    return f"{names or 'no weights'} {'have' if len(dtypes) != 1 else 'has'} no kernel on the CPU"


def is_plain(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> bool:
    """On the CPU, of this dtype, with the values in memory: neither negated (`x.conj().imag`) nor zeros without it."""
    fits = dtype is None or tensor.dtype is dtype
    return fits and tensor.is_cpu and not tensor.is_neg() and not tensor._is_zerotensor()
