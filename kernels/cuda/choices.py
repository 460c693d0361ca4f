"""Measured choices: which plan and tile was fastest on a GPU, by sizes and number of rows, in a table that is kept.

The table is a JSON file, `{key: [{"rows": ..., "plan": ..., "tile": {...}, "microseconds": ...}, ...]}`, in the user's
cache folder or where the environment variable FASTGRAPH_CUDA_CHOICES says. Where it has no entry for a key, defaults
hold. It is read once a process.
"""

import functools
import hashlib
import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fastgraph.kernels.cuda.tiles import Tile

PLANS = {"layers": "a kernel a layer", "whole": "one launch"}


@dataclass(frozen=True)
class Choice:
    """What was fastest at a number of rows."""

    rows: int
    plan: str  # a name that the op knows, "layers" or "whole"
    tile: Tile | None  # None: the default
    microseconds: float  # median of one call


def path() -> Path:
    """Where the table is kept."""
    forced = os.environ.get("FASTGRAPH_CUDA_CHOICES")
    if forced:
        return Path(forced)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastgraph" / "cuda_choices.json"


@functools.cache
def table() -> dict[str, list[Choice]]:
    """The saved table; empty where there is none. ValueError, naming the file, for one that cannot be read."""
    try:
        text = path().read_text()
    except FileNotFoundError:
        return {}
    try:
        entries = json.loads(text)
        return {key: [_choice(entry) for entry in found] for key, found in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path()}: not a table of choices ({error}); delete it to measure anew") from error


def _choice(entry: dict[str, Any]) -> Choice:
    tile = entry["tile"]
    return Choice(entry["rows"], entry["plan"], tile if tile is None else Tile(**tile), entry["microseconds"])


def chosen(key: str, rows: Any) -> Choice | None:
    """The choice of the nearest number of rows that was measured, in ratio; None where nothing was."""
    found = table().get(key)
    if not found:
        return None
    for smaller, larger in pairwise(found):
        if rows <= math.isqrt(smaller.rows * larger.rows):
            return smaller
    return found[-1]


def describe(key: str) -> str | None:
    """What was measured for a key, in words; None where nothing was."""
    found = table().get(key)
    if not found:
        return None
    return "measured: " + ", ".join(f"{PLANS.get(c.plan, c.plan)} at {c.rows}" for c in found)


def digest() -> str:
    """A short name of all that the table says; the same for the same table."""
    return hashlib.sha256(repr(sorted(table().items())).encode()).hexdigest()[:16]


def record(key: str, choice: Choice) -> None:
    """Adds a choice, in place of an earlier one for the same number of rows, and saves the table."""
    others = [c for c in table().get(key, []) if c.rows != choice.rows]
    table()[key] = sorted([*others, choice], key=lambda c: c.rows)
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({k: [asdict(c) for c in found] for k, found in table().items()}, indent=1)
    with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        file.write(text)
    os.replace(file.name, target)
