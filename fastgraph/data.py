"""The real data of the reference workload: scanned digits and a photograph, both from scikit-learn's own files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from fastgraph.extras import require

Split = Literal["held_out", "train", "all"]

HELD_OUT_EVERY = 5
"""One scan in five of each class is held out."""


def digits(split: Split = "held_out") -> tuple[Tensor, Tensor]:
    """Scikit-learn's 1,797 scanned digits, enlarged bilinearly from 8x8 to 28x28.

    Every fifth scan of each class is held out (355 scans), the others are for training (1,442). The split is a rule,
    not a draw, so it is the same for everybody.

    Args:
        split: ``"held_out"``, ``"train"`` or ``"all"``.

    Returns:
        Images ``[N, 784]`` float32 in [0, 1] and their classes ``[N]`` int64 in 0..9, in the order of the data set.

    Raises:
        ValueError: ``split`` is none of the three.
        ModuleNotFoundError: scikit-learn, which ships the scans, is not installed.
    """
    if split not in get_args(Split):
        raise ValueError(f"digits: split must be one of {', '.join(get_args(Split))}; got {split!r}")
    images, labels = _all_digits()
    if split == "all":
        return images.clone(), labels.clone()
    chosen = _held_out(labels) == (split == "held_out")
    return images[chosen], labels[chosen]


def photograph(path: str | Path | None = None) -> Tensor:
    """A photograph as ``Net`` takes it: resized to 720x480, scaled to mean and standard deviation 0.5.

    The torchvision transforms ``Resize((720, 480))``, ``ToTensor()``, ``Normalize(0.5, 0.5)``, one after another.

    Args:
        path: an image file that Pillow reads, converted to RGB; by default scikit-learn's ``china.jpg``.

    Returns:
        ``[1, 3, 720, 480]`` float32 in [-1, 1].

    Raises:
        FileNotFoundError: there is no file at ``path``.
        ValueError: the file at ``path`` cannot be read as an image.
        ModuleNotFoundError: Pillow or torchvision is not installed; or no ``path`` is given, and scikit-learn, which
            ships the photograph, is not.
    """
    require("PIL", "torchvision", *(() if path is not None else ("sklearn",)), by="fastgraph.data.photograph")
    from PIL import Image
    from torchvision import transforms

    if path is None:
        from sklearn import datasets

        image = Image.fromarray(datasets.load_sample_image("china.jpg"))
    else:
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except FileNotFoundError:
            raise FileNotFoundError(f"photograph: there is no file at {str(path)!r}") from None
        except OSError as error:  # among them Pillow's own, for what is no image or only the beginning of one
            raise ValueError(f"photograph: {str(path)!r} cannot be read as an image: {error}") from error
    transform = transforms.Compose(
        [transforms.Resize((720, 480)), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    )
    return transform(image).unsqueeze(0)


@cache
def _all_digits() -> tuple[Tensor, Tensor]:
    """All scans ``[1797, 784]`` float32 and their classes ``[1797]`` int64; read once, so callers get copies."""
    require("sklearn", by="fastgraph.data.digits")
    from sklearn import datasets

    scans = datasets.load_digits()
    small = torch.tensor(scans.images, dtype=torch.float64).unsqueeze(1) / 16  # the scanner gave levels 0..16
    images = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    return images.flatten(1).clamp(0, 1).float(), torch.tensor(scans.target, dtype=torch.int64)


def _held_out(labels: Tensor) -> Tensor:
    """True ``[N]`` where a scan is every fifth one of its class.

    Counting within the class matters: the writers wrote 0, 1, .. 9 in turn; every fifth scan overall is mostly 4 or 9.
    """
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        places = (labels == label).nonzero().squeeze(1)
        held_out[places[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]] = True
    return held_out
