"""A user's own model for a command line: ``--model package.module:callable --input-shape 1,3,224,224``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn


class UsageError(Exception):
    """A model, device or option that cannot be had; the message says what is needed."""


def number(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1; got {text!r}")
    return int(text)


def numbers(text: str) -> list[int]:
    """Whole numbers from 1, separated by commas."""
    return [number(part.strip()) for part in text.split(",")]


def shape(text: str) -> tuple[int, ...]:
    """Sizes from 1, the batch first."""
    return tuple(numbers(text))


def random_input(sizes: Sequence[int]) -> Tensor:
    """Normally distributed numbers, float32, the same ones every time."""
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(0))


def asked_for(target: str, input_shape: Sequence[int] | None) -> tuple[str, Sequence[int]]:
    """The two arguments of a command line; UsageError where the second is missing.

    From now on modules are looked for in the current folder too, as with ``python -m``.
    """
    if input_shape is None:
        raise UsageError(f"--model {target} needs --input-shape, the batch first")
    sys.path.insert(0, "")
    return target, input_shape


@cache
def load(target: str) -> nn.Module:
    """What ``target`` makes, in eval mode; UsageError where it cannot."""
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise UsageError(f"a model must be deep, net, all or module:callable; got {target!r}")
    try:
        make = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise UsageError(f"{target} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # every process makes its own: with weights drawn at random they must be the same
            made = make()
    except Exception as error:
        raise UsageError(f"{target}() raised {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"{target}() must give a torch.nn.Module; got {type(made).__name__}")
    return made.eval()
