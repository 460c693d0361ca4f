"""What a backend is: three methods, and what it says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastgraph.extras import require

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """How every backend is asked to compute: a key of ``DTYPES``, threads of the CPU, "cpu" or "cuda".

    On CUDA: whether the L2 cache is emptied before each call ("warm" or "cold"), whether the host launches each kernel
    or one graph ("plain" or "graph"), and whether a call takes its input from the host's memory and brings its output
    there.
    """

    dtype: str = "fp32"
    threads: int = 1
    device: str = "cpu"
    cache: str = "warm"
    launch: str = "plain"
    copies: bool = False

    def __str__(self) -> str:
        """The setting in the report."""
        if self.device == "cpu":
            return f"{self.dtype}, cpu, {self.threads} threads"
        how = f"{self.cache} L2, {'one CUDA graph' if self.launch == 'graph' else 'plain launches'}"
        return f"{self.dtype}, cuda, {how}, copies {'included' if self.copies else 'not included'}"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as PyTorch has it."""
        return DTYPES[self.dtype]


class Backend(ABC):
    """One way to run a model. It lives in a process of its own, in which it is the only one.

    ``any_batch``: what was prepared with one batch size serves every other. ``casts_model``: it is given a model and
    an input that are already in the setting's dtype; otherwise both are float32 and it casts inside. ``own_graph``: on
    CUDA a call is a CUDA graph already, which cannot be captured into another one. ``is_ours``: it runs our
    kernels, so it is no peer of ours. ``slow_to_compile``: compiling for a batch size takes it as much processor time
    as all other backends together. ``needs``: optional modules that it imports.
    """

    name: ClassVar[str]
    any_batch: ClassVar[bool] = True
    casts_model: ClassVar[bool] = False
    own_graph: ClassVar[bool] = False
    is_ours: ClassVar[bool] = False
    slow_to_compile: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def missing(cls) -> str | None:
        """Which packages it lacks here, with the pip line that brings them; None where it has all."""
        try:
            require(*cls.needs, by=f"the {cls.name} backend")
        except ModuleNotFoundError as error:
            return str(error)
        except ImportError:  # it is there and broken: its row will say how
            return None
        return None

    def refusal(self, setting: Setting) -> str | None:
        """Why it cannot do this at all, or None."""
        if self.own_graph and setting.launch == "graph":
            return f"{self.name} launches a CUDA graph of its own, with plain launches too"
        return None

    @abstractmethod
    def prepare(self, model: nn.Module, x: Tensor, setting: Setting) -> None:
        """Makes the model ready to run on inputs like ``x`` ``[B, ...]``."""

    @abstractmethod
    def run(self, x: Tensor) -> Tensor:
        """One call, with nothing around it that a user would not pay."""

    def fused(self) -> float | None:
        """Share of the model's FLOPs, 0..1, in fused kernels of ours; None where it does not tell."""
        return None

    @abstractmethod
    def ran_on(self) -> str:
        """Where and how it really ran: device, provider, instruction set."""


def at_least_two_rows(x: Tensor) -> Tensor:
    """``x``, or two rows of it: torch.export burns a batch of 1 into the graph."""
    return x if x.shape[0] >= 2 else x.repeat(2, *[1] * (x.dim() - 1))
