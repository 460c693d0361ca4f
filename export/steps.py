"""The eager pictures, drawn by torchviz: a model's autograd graph, layer after layer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgraph import data
from fastgraph.extras import require
from fastgraph.models import DeepLearningModel, Net

if TYPE_CHECKING:
    import graphviz


@dataclass(frozen=True)
class Step:
    """What one layer gives, and the graph of how it came about."""

    layer: str  # "conv1"
    shape: tuple[int, ...]
    graph: graphviz.Digraph

    def __str__(self) -> str:
        return f"{self.layer}: {torch.Size(self.shape)}"


def photograph(path: str | Path | None = None) -> Tensor:
    """``fastgraph.data.photograph``, of an image in colour only.

    Raises:
        FileNotFoundError, ValueError: there is no file, it is no image, or it has another mode than RGB: an alpha
            channel, shades of grey, a palette.
    """
    if path is not None:
        require("PIL", by="--image")
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as image:
                mode = image.mode
        except FileNotFoundError:
            raise FileNotFoundError(f"image: there is no file at {str(path)!r}") from None
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"image: {str(path)!r} cannot be read as an image: {error}") from error
        if mode != "RGB":
            kinds = {"L": "grey", "1": "black and white", "LA": "grey with an alpha channel", "P": "a palette"}
            kind = "an alpha channel" if mode.endswith(("A", "a")) else "other channels"
            kind = kinds.get(mode, "grey" if mode.startswith(("I", "F")) else kind)
            raise ValueError(f"image: needs three channels, red, green and blue; {str(path)!r} is {mode} ({kind})")
    return data.photograph(path)


def net_steps(image: str | Path | None = None, seed: int = 0) -> list[Step]:
    """``Net`` on a photograph: each layer's graph, then the prediction's after one step of training.

    The training step: loss ``(prediction - labels).sum()``, ``backward``, SGD with learning rate 0.001 and momentum
    0.9. Weights and labels are drawn with ``seed``.
    """
    photo = photograph(image)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, labels = Net(), torch.rand(5728, 1)
    y1 = net.conv1(photo)
    y2 = net.pool(torch.relu(y1))
    y3 = torch.relu(net.fc1(y2))
    y4 = torch.relu(net.fc2(y3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    prediction = net(photo)
    loss = (prediction - labels).sum()
    loss.backward()
    optimizer.step()
    values = {"conv1": y1, "pool": y2, "fc1": y3, "fc2": y4, "prediction": prediction}
    return [Step(layer, tuple(value.shape), _graph(value, net)) for layer, value in values.items()]


def deep_steps() -> list[Step]:
    """``DeepLearningModel`` on a scanned digit: the forward pass, and its class."""
    model, (images, _) = DeepLearningModel.pretrained(), data.digits()
    probabilities = model(images[:1])
    graph = _graph(probabilities, model)
    digit = probabilities.argmax(dim=1)
    graph.node("argmax", f"argmax(dim=1)\n class {digit.item()}", fillcolor="lightyellow")
    graph.edge(str(id(probabilities)), "argmax")  # argmax has no gradient, so torchviz does not see it
    return [Step("forward", tuple(probabilities.shape), graph)]


def _graph(value: Tensor, model: torch.nn.Module) -> graphviz.Digraph:
    require("torchviz", "graphviz", by="--steps")
    import torchviz

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="distutils Version classes")  # torchviz's own
        return torchviz.make_dot(value, params=dict(model.named_parameters()))
