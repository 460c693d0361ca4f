"""The eager pictures: shapes, and that each names the parameters that it depends on."""

from pathlib import Path

import pytest
from PIL import Image

from fastgraph.export import steps
from fastgraph.models import DeepLearningModel, Net


@pytest.fixture(scope="module")
def drawn() -> list[steps.Step]:
    return steps.net_steps()


def test_the_lines_are_layer_and_shape(drawn: list[steps.Step]) -> None:
    assert [str(step) for step in drawn] == [
        "conv1: torch.Size([1, 16, 718, 478])",
        "pool: torch.Size([1, 16, 358, 238])",
        "fc1: torch.Size([1, 16, 358, 120])",
        "fc2: torch.Size([1, 16, 358, 1])",
        "prediction: torch.Size([5728, 1])",
    ]


def test_each_picture_names_its_parameters(drawn: list[steps.Step]) -> None:
    names = [name for name, _ in Net().named_parameters()]
    counts = [2, 2, 4, 6, 6]
    for step, count in zip(drawn, counts, strict=True):
        assert [name for name in names if name in step.graph.source] == names[:count]
    assert "MaxPool2DWithIndicesBackward0" in drawn[1].graph.source
    assert "MaxPool2D" not in drawn[0].graph.source
    assert "SigmoidBackward0" in drawn[4].graph.source


def test_the_forward_pass_ends_in_its_argmax() -> None:
    (step,) = steps.deep_steps()
    assert str(step) == "forward: torch.Size([1, 10])"
    for name, _ in DeepLearningModel().named_parameters():
        assert name in step.graph.source
    assert "argmax(dim=1)\n class 5" in step.graph.source.replace("\\n", "\n")
    assert step.graph.source.count("-> argmax") == 1


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "grey"),
        ("RGBA", "an alpha channel"),
        ("P", "a palette"),
        ("LA", "grey with an alpha channel"),
        ("I;16", "grey"),
    ],
)
def test_an_image_in_other_than_three_colours_is_named(mode: str, kind: str, tmp_path: Path) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / "image.png")
    message = rf"image: needs three channels, red, green and blue; '.*image.png' is {mode} \({kind}\)"
    with pytest.raises(ValueError, match=message):
        steps.photograph(tmp_path / "image.png")


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(ValueError, match=r"image: '.*text.jpg' cannot be read as an image"):
        steps.photograph(tmp_path / "text.jpg")
    with pytest.raises(FileNotFoundError, match=r"image: there is no file at '.*none.jpg'"):
        steps.photograph(tmp_path / "none.jpg")


def test_an_image_in_colour_is_taken(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "red.png")
    assert steps.photograph(tmp_path / "red.png").unique().tolist() == [-1, 1]
