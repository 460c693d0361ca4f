"""The GPUs that the Triton kernels are compiled for: limits that decide about tiles, and instructions to expect.

Limits: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; AMD Instinct MI300 (CDNA 3)
instruction set architecture, chapter 1. Shared memory in bytes.
"""

import functools
import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Architecture:
    """One GPU architecture. `number` is the compute capability times ten; for AMD 0."""

    name: str  # "sm_90", "gfx942"
    number: int
    warps: int  # resident on one multiprocessor
    blocks: int  # resident on one multiprocessor
    shared: int  # of one multiprocessor
    shared_a_block: int  # the most that one block can ask for
    matrix: tuple[str, ...]  # instructions in the machine code that multiply matrices
    processors: int  # multiprocessors of its most common large GPU, where none is at hand to be asked
    registers: int = 65536  # of one multiprocessor, 32 bits each

    @property
    def is_amd(self) -> bool:
        """Whether Triton compiles for it with its AMD backend."""
        return self.number == 0

    @property
    def has_descriptors(self) -> bool:
        """Whether a unit of its own (TMA) fetches what a tensor descriptor describes."""
        return self.number >= 90 and self.number < 120

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether the kernels compute in this dtype here: 16 bits where Triton has matrix instructions for them.

        For sm_75 it has none: fp16 products would run on the ordinary cores, and default tiles spill by kilobytes.
        """
        return dtype is torch.float32 or (
            dtype in (torch.float16, torch.bfloat16) and (self.is_amd or self.number >= 80)
        )


KIB = 1024
ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture("sm_75", 75, 32, 16, 64 * KIB, 64 * KIB, ("HMMA",), 40),
        Architecture("sm_80", 80, 64, 32, 164 * KIB, 163 * KIB, ("HMMA",), 108),
        Architecture("sm_86", 86, 48, 16, 100 * KIB, 99 * KIB, ("HMMA",), 84),
        Architecture("sm_87", 87, 48, 16, 164 * KIB, 163 * KIB, ("HMMA",), 16),
        Architecture("sm_89", 89, 48, 24, 100 * KIB, 99 * KIB, ("HMMA",), 128),
        Architecture("sm_90", 90, 64, 32, 228 * KIB, 227 * KIB, ("HGMMA", "HMMA"), 132),
        Architecture("sm_100", 100, 64, 32, 228 * KIB, 227 * KIB, ("UTCHMMA", "HMMA"), 148),
        Architecture("sm_103", 103, 64, 32, 228 * KIB, 227 * KIB, ("UTCHMMA", "HMMA"), 148),
        Architecture("sm_120", 120, 48, 24, 100 * KIB, 99 * KIB, ("HMMA",), 170),
        Architecture("gfx942", 0, 32, 32, 64 * KIB, 64 * KIB, ("v_mfma",), 304, 131072),
    )
}
COMPILED = (
    "sm_75",
    "sm_80",
    "sm_86",
    "sm_89",
    "sm_90",
    "sm_100",
    "sm_120",
    "gfx942",
)  # by `python -m fastgraph.kernels.triton_aot`
OLDEST = 75


@functools.cache
def _of(index: int) -> Architecture | str:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        name = re.split(":", properties.gcnArchName)[0]
        return ARCHITECTURES.get(name, f"{name} is not among {', '.join(a for a in ARCHITECTURES if a[0] == 'g')}")
    number = 10 * properties.major + properties.minor
    if number < OLDEST:
        return f"compute capability {properties.major}.{properties.minor} is older than 7.5"
    known = [a for a in ARCHITECTURES.values() if not a.is_amd and a.number <= number]
    return max(known, key=lambda a: a.number)  # a newer one has at least what its predecessor in the table has


def architecture_of(device: torch.device) -> Architecture | str:
    """The architecture of a CUDA device, or why the kernels do not run on it."""
    return _of(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def processors_of(device: torch.device) -> int:
    """Number of multiprocessors."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
