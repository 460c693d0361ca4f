"""Networks of torchvision and timm by their names there, with random weights at the size that they are trained for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import nn

from fastgraph.bench.zoo.entry import LARGE, OFFLINE_LARGE, Entry, photos
from fastgraph.export.user_model import UsageError
from fastgraph.extras import require

IMAGE = 224
OWN_INIT = ("googlenet", "inception_v3")  # theirs takes seconds, and warns that it will go


def torchvision_entry(name: str, title: str = "", sample: Sequence[int] | None = None) -> Entry:
    """The classifier ``torchvision.models.NAME``, for images ``sample``, or of the size that it is trained for.

    Without a title it is one that a user names: UsageError where it is not there.
    """
    if not title:
        sample = sample or (3, *_torchvision_size(name))
    shape = tuple(sample or (3, IMAGE, IMAGE))
    make = partial(make_torchvision, name)
    return Entry(title or f"torchvision {name}", make, photos(*shape), LARGE, OFFLINE_LARGE, "torchvision")


def timm_entry(name: str, sample: Sequence[int] | None = None) -> Entry:
    """The classifier ``timm.create_model(NAME)``; UsageError where it, or timm, is not there."""
    try:
        timm: Any = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise UsageError(f"--model timm:{name} needs timm: pip install timm") from error
    if not timm.is_model(name):
        raise UsageError(_unknown("timm", name, timm.list_models()))
    about = timm.get_pretrained_cfg(name)
    shape = tuple(sample or (about.input_size if about else (3, IMAGE, IMAGE)))
    return Entry(f"timm {name}", partial(make_timm, name), photos(*shape), LARGE, OFFLINE_LARGE, "timm")


def make_torchvision(name: str, **options: Any) -> nn.Module:
    """The network, without weights from elsewhere; ``options`` are torchvision's."""
    from torchvision import models

    if name in OWN_INIT:
        options["init_weights"] = False
    made: nn.Module = models.get_model(name, weights=None, **options)
    return made


def make_timm(name: str) -> nn.Module:
    """The network, without weights from elsewhere."""
    made: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False)
    return made


def _torchvision_size(name: str) -> tuple[int, int]:
    """Height and width of the images that the published weights are for."""
    try:
        require("torchvision", by=f"--model torchvision:{name}")
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from error
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UsageError(_unknown("torchvision", name, known))
    crop = models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    return crop, crop


def _unknown(library: str, name: str, known: Sequence[str]) -> str:
    """That there is no such network, with names like it."""
    close = get_close_matches(name, known)
    return f"{library} has no classifier {name!r}" + (f"; do you mean {' or '.join(close)}?" if close else "")
