"""How figures are written: units that fit, and JSON that every reader takes."""

from __future__ import annotations

import math
from typing import Any


def duration(seconds: float | None) -> str:
    """``seconds`` to three or four digits in the unit that fits; "-" when None."""
    if seconds is None:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def size(count: float | None) -> str:
    """``count`` bytes in the unit that fits; "-" when None."""
    if count is None:
        return "-"
    for unit in ("B", "KB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def rate(count: float) -> str:
    """``count`` to three digits with k, M, G or T: "456 G"."""
    for unit in ("", "k", "M", "G"):
        if count < 999.5:
            return f"{count:.3g} {unit}".rstrip()
        count /= 1000
    return f"{count:.3g} T"


def finite(value: Any) -> Any:
    """``value`` with None for NaN and infinity, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
