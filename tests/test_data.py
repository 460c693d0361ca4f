"""The digits and the photograph."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from fastgraph import data


@pytest.fixture
def without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    data._all_digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    yield
    data._all_digits.cache_clear()


def bilinear(size: int, enlarged: int) -> np.ndarray:
    """Matrix ``[enlarged, size]`` of linear interpolation between pixel centres, held at the edges."""
    matrix = np.zeros((enlarged, size))
    for row in range(enlarged):
        place = min(max((row + 0.5) * size / enlarged - 0.5, 0), size - 1)
        left = min(int(place), size - 2)
        matrix[row, left], matrix[row, left + 1] = left + 1 - place, place - left
    return matrix


@pytest.mark.parametrize(("split", "count"), [("held_out", 355), ("train", 1442), ("all", 1797)])
def test_digits_have_the_shapes_and_ranges_that_are_promised(split: data.Split, count: int) -> None:
    images, labels = data.digits(split)
    assert images.shape == (count, 784)
    assert images.dtype == torch.float32
    assert images.min() == 0
    assert images.max() == 1
    assert labels.shape == (count,)
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))


def test_held_out_is_the_default() -> None:
    assert torch.equal(data.digits()[0], data.digits("held_out")[0])


def test_digits_are_the_scans_enlarged() -> None:
    scans, matrix = load_digits(), bilinear(8, 28)
    images, labels = data.digits("all")
    expected = matrix @ (scans.images / 16) @ matrix.T
    difference = np.abs(images.view(-1, 28, 28).numpy() - expected).max()
    assert difference <= torch.finfo(torch.float32).eps / 2  # one rounding of values up to 1
    assert labels.tolist() == scans.target.tolist()


def test_every_scan_is_in_one_split_and_every_class_in_proportion() -> None:
    (held_out, held_out_labels), (train, train_labels) = data.digits("held_out"), data.digits("train")
    together = torch.cat([held_out, train])
    order = lambda images: torch.tensor(np.lexsort(images.numpy().T))  # noqa: E731
    everything = data.digits("all")[0]
    assert torch.equal(together[order(together)], everything[order(everything)])
    for label in range(10):
        kept, of = (held_out_labels == label).sum().item(), (train_labels == label).sum().item()
        assert kept == (kept + of) // 5


@pytest.mark.parametrize("split", ["held_out", "train", "all"])
def test_digits_are_the_callers_own(split: data.Split) -> None:
    for tensor in data.digits(split):
        tensor.zero_()
    images, labels = data.digits(split)
    assert images.any()
    assert labels.any()


def test_digits_refuse_an_unknown_split() -> None:
    with pytest.raises(ValueError, match="split must be one of held_out, train, all; got 'test'"):
        data.digits("test")  # type: ignore[arg-type]


def test_photograph_is_resized_and_normalized() -> None:
    x = data.photograph()
    assert x.shape == (1, 3, 720, 480)
    assert x.dtype == torch.float32
    resized = np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((480, 720), Image.Resampling.BILINEAR))
    expected = resized.astype(np.float64).transpose(2, 0, 1)[None] / 255 * 2 - 1
    difference = np.abs(x.numpy() - expected).max()
    assert difference <= 2 * torch.finfo(torch.float32).eps  # three roundings of values up to 1, the last one doubled


def test_photograph_takes_any_image_as_rgb(tmp_path: Path) -> None:
    Image.new("L", (30, 20), color=255).save(tmp_path / "grey.png")
    assert torch.equal(data.photograph(tmp_path / "grey.png"), torch.ones(1, 3, 720, 480))
    assert torch.equal(data.photograph(str(tmp_path / "grey.png")), torch.ones(1, 3, 720, 480))


def test_photograph_names_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"photograph: there is no file at '.*nowhere.jpg'"):
        data.photograph(tmp_path / "nowhere.jpg")


def test_photograph_names_a_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(ValueError, match=r"photograph: '.*text.jpg' cannot be read as an image: cannot identify"):
        data.photograph(tmp_path / "text.jpg")


def test_photograph_names_a_file_that_is_cut_off(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(load_sample_image("china.jpg")).save(whole)
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"photograph: '.*half.jpg' cannot be read as an image: .*truncated"):
        data.photograph(tmp_path / "half.jpg")


@pytest.mark.usefixtures("without_scikit_learn")
@pytest.mark.parametrize("load", [data.digits, data.photograph])
def test_says_how_to_get_scikit_learn(load: Callable[[], object]) -> None:
    with pytest.raises(
        ModuleNotFoundError, match=r"^fastgraph.data.\w+ needs scikit-learn: pip install 'fastgraph\[bench\]'$"
    ):
        load()


@pytest.mark.usefixtures("without_scikit_learn")
def test_own_photograph_needs_no_scikit_learn(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "black.png")
    assert torch.equal(data.photograph(tmp_path / "black.png"), -torch.ones(1, 3, 720, 480))


def test_importing_the_module_imports_neither_library() -> None:
    program = "import sys, fastgraph.data; print([name for name in ('sklearn', 'torchvision') if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
