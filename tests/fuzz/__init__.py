"""A differential fuzzer: random small modules through `optimize`, `torch.compile`, files and ONNX, against eager.

    python -m tests.fuzz --seed 1234                  # one module: its source, what was found
    python -m tests.fuzz --seed 1234 --shrink         # and the smallest module with the same finding
    python -m tests.fuzz --count 10000 --jobs 2       # many; exit status 1 where there are findings

`program` is a module as source text, `generator` makes one from a seed out of the `catalogue`, `compare` calls it and
says how two calls differ, `stages` are the ways that a user can take, `runner` does many in worker processes.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from tests.fuzz.generator import generate

__all__ = ["build", "generate"]


def build(seed: int) -> tuple[nn.Module, Callable[[int], tuple[Any, ...]]]:
    """The module of a seed, and a function that makes its arguments for a batch."""
    program = generate(seed)
    return program.build(), program.make_inputs
