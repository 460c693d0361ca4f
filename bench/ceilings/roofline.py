"""The roofline model of a GPU: how short a call could be by its bytes and operations alone. A model, no measurement.

A kernel cannot take less than its operations at the GPU's peak, nor less than its bytes at the memory's (Williams,
Waterman, Patterson, "Roofline", CACM 52(4), 2009). A call is the sum over its kernels. Launches, caches and what no
kernel reaches of the peaks are left out, so real times are longer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fastgraph.bench.backends import DTYPES
from fastgraph.bench.cases import Built, in_dtype


@dataclass(frozen=True)
class Gpu:
    """Published peaks: dense operations a second by dtype, bytes a second of memory, and where they are published.

    "fp32" is IEEE single precision on the ordinary cores, "bf16" on the matrix cores with fp32 accumulation.
    """

    name: str
    flops: dict[str, float]
    bytes_per_s: float
    source: str


GPUS = {
    "A100": Gpu(
        "A100 SXM 80 GB", {"fp32": 19.5e12, "bf16": 312e12}, 2.039e12, "NVIDIA A100 Tensor Core GPU datasheet, 2021"
    ),
    "H100": Gpu("H100 SXM", {"fp32": 67e12, "bf16": 989e12}, 3.35e12, "NVIDIA H100 Tensor Core GPU datasheet, 2023"),
    "H200": Gpu("H200 SXM", {"fp32": 67e12, "bf16": 989e12}, 4.8e12, "NVIDIA H200 Tensor Core GPU datasheet, 2024"),
    "B200": Gpu("B200 (HGX)", {"fp32": 80e12, "bf16": 2250e12}, 8e12, "NVIDIA Blackwell technical brief, 2024"),
    "RTX4090": Gpu(
        "GeForce RTX 4090", {"fp32": 82.6e12, "bf16": 165.2e12}, 1.008e12, "NVIDIA Ada GPU architecture, appendix A"
    ),
    "L4": Gpu("L4", {"fp32": 30.3e12, "bf16": 121e12}, 0.3e12, "NVIDIA L4 Tensor Core GPU datasheet, 2023"),
}
"""By the name that ``--model-gpu`` takes. Where a data sheet gives matrix peaks with sparsity, half of it."""

VARIANTS = ("eager", "per layer", "whole")


@dataclass
class Kernel:
    """Operations and bytes of one launch."""

    flops: int = 0
    read: int = 0
    written: int = 0
    made: set[int] = field(default_factory=set)  # ids of the tensors that it has made itself

    @property
    def bytes(self) -> int:
        """All that it moves."""
        return self.read + self.written


@dataclass(frozen=True)
class Modelled:
    """The floor of one variant: "eager" (a kernel an operator), "per layer" (each matrix product or convolution with
    all that follows it until the next), "whole" (one kernel)."""

    case: str
    gpu: str
    source: str
    dtype: str
    variant: str
    kernels: int
    flops: int
    bytes: int
    floor_s: float


def floors(case: str, built: Built, gpu_name: str, dtype: str) -> list[Modelled]:
    """The floors of all ``VARIANTS`` on a GPU of ``GPUS``, the model's tensors all in ``dtype``."""
    gpu = GPUS[gpu_name]
    modelled = []
    for variant, kernels in variants(built, DTYPES[dtype]).items():
        seconds = sum(max(k.flops / gpu.flops[dtype], k.bytes / gpu.bytes_per_s) for k in kernels)
        flops, moved = sum(k.flops for k in kernels), sum(k.bytes for k in kernels)
        modelled.append(Modelled(case, gpu.name, gpu.source, dtype, variant, len(kernels), flops, moved, seconds))
    return modelled


def variants(built: Built, dtype: torch.dtype) -> dict[str, list[Kernel]]:
    """The kernels of one call by variant."""
    meta = copy.deepcopy(built.model).to("meta", dtype)
    x = in_dtype(built.x, dtype).to("meta")
    with torch.no_grad(), _Recorder() as recorder:
        output = meta(x)
    eager, layers = recorder.eager, recorder.layers
    weights = sum(_bytes(parameter) for parameter in meta.parameters())
    whole = Kernel(sum(k.flops for k in eager), weights + _bytes(x), _bytes(output))
    return dict(zip(VARIANTS, (eager, layers, [whole]), strict=True))


class _Recorder(TorchDispatchMode):
    """Writes down what each operator of a call on tensors without data would read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.eager: list[Kernel] = []
        self.layers: list[Kernel] = []
        self._kept: list[Any] = []  # so that no two tensors of the call share an id

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [t for t in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(t, Tensor)]
        self._kept += [args, outputs]
        if func.is_view:
            for kernel in self.layers[-1:]:
                if any(id(t) in kernel.made for t in _tensors(args)):
                    kernel.made |= {id(t) for t in outputs}
            return result
        count = flop_registry.get(func.overloadpacket)
        flops = count(*args, **(kwargs or {}), out_val=result) if count else 0
        read = sum(_bytes(t) for t in _tensors(args))
        self.eager.append(Kernel(flops, read, sum(_bytes(t) for t in outputs)))
        if flops or not self.layers:
            self.layers.append(Kernel(flops, read))
        else:  # joins the kernel before it, whose own result it need not read
            self.layers[-1].read += sum(_bytes(t) for t in _tensors(args) if id(t) not in self.layers[-1].made)
        self.layers[-1].written = _bytes(outputs[0])  # a fused pool writes no indices
        self.layers[-1].made |= {id(t) for t in outputs}
        return result


def _tensors(args: Any) -> list[Tensor]:
    """The tensors among an operator's arguments, in lists too."""
    flat = [item for arg in args for item in (arg if isinstance(arg, (tuple, list)) else [arg])]
    return [item for item in flat if isinstance(item, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Bytes of the tensor's values."""
    return tensor.numel() * tensor.element_size()
