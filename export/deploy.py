"""The folder that a model is deployed from: ONNX files, a Triton Inference Server repository, clients, pictures."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib.resources import files as package_files
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import fastgraph
from fastgraph import data
from fastgraph.export import files, graphs, steps, triton_config, user_model
from fastgraph.export.compare import compare
from fastgraph.export.onnx import to_onnx
from fastgraph.models import DeepLearningModel, Net

MODELS = ("deep", "net")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """A model to deploy. ``served`` is what the inference server runs, which batches along the first axis."""

    key: str
    model: nn.Module
    served: nn.Module
    example: Tensor
    preprocessing: str
    labels: tuple[str, ...]
    sample: tuple[str, bytes] | None  # name and contents of an image file that the clients read
    drawn: Callable[[], list[steps.Step]]  # the eager pictures


class PerImage(nn.Module):
    """``Net`` with the rows of each image apart: ``[B, 3, H, W]`` to ``[B, rows, 1]`` instead of ``[B * rows, 1]``."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Values ``[B, rows, 1]`` of the images ``x``."""
        return self.net(x).view(x.shape[0], -1, 1)


def entry(key: str, image: str | Path | None = None) -> Entry:
    """The reference model called ``key``; ``image`` is the photograph that ``net`` is verified and drawn with."""
    if key == "deep":
        images, labels = data.digits()
        pixels = (images[0] * 255).round().to(torch.uint8).numpy().tobytes()
        model = DeepLearningModel.pretrained()
        about = "28x28 grey image as one row, 0 to 1"
        sample = (f"digit_{labels[0].item()}.pgm", b"P5\n28 28\n255\n" + pixels)
        return Entry(key, model, model, images[:16], about, tuple(map(str, range(10))), sample, steps.deep_steps)
    photo = steps.photograph(image)
    pixels = ((photo[0] * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy().tobytes()
    net = _seeded_net()
    about = "Resize 720x480, mean 0.5, std 0.5"
    sample = ("photograph.ppm", b"P6\n480 720\n255\n" + pixels)
    drawn = partial(steps.net_steps, image)
    return Entry(key, net, PerImage(net).eval(), photo, about, (), sample, drawn)


def user_entry(target: str, input_shape: Sequence[int]) -> Entry:
    """The model that ``target``, "module:callable", makes when it is called without arguments, with random input.

    Raises:
        UsageError: it cannot be imported, or gives no module.
    """
    model = user_model.load(target)
    return Entry(target.partition(":")[2], model, model, user_model.random_input(input_shape), "", (), None, list)


def _seeded_net() -> Net:
    """``Net`` has no trained weights. As PyTorch draws them most outputs are exactly 0.5, whatever the image; with He's
    initialisation and a bias of 1 before the last ReLU they differ from row to row."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = Net().eval()
        for layer in (net.conv1, net.fc1, net.fc2):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        net.fc2.bias.fill_(1)
    return net


def deploy(entries: Sequence[Entry], out: Path, *, measured: bool = False, say: Say = print) -> None:
    """Writes the folder; what is there already is replaced, file by file."""
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    pictures, figures = [], []
    for one in entries:
        _onnx_files(one, out, measured, say)
        pictures.append(graphs.draw(one.model, (one.example[:1],), measured=measured))
        _render(graphs.to_dot(pictures[-1]), out / "pictures" / one.key, say)
        if drawn := draw_steps(one.drawn(), out / "pictures", one.key, say):
            figures.append(_figures(one, drawn))
    _clients([one.sample for one in entries if one.sample is not None], out / "client")
    files.write(out / "README.md", _readme(entries))
    extra = "".join(figures) + _links(out)
    files.write(out / "index.html", graphs.to_html("fastgraph: deployment", pictures, extra))
    say(f"{out / 'index.html'}: the pictures; {out / 'README.md'}: what is where")


def _clients(samples: Sequence[tuple[str, bytes]], folder: Path) -> None:
    """The clients, which read images, and an image for each model that takes one."""
    if samples:
        folder.mkdir(exist_ok=True)
        for name, contents in samples:
            files.write(folder / name, contents)
        for name in ("client.py", "client.cc"):
            files.write(folder / name, package_files("fastgraph.export.clients").joinpath(name).read_bytes())


def _onnx_files(one: Entry, out: Path, measured: bool, say: Say) -> None:
    """The model's file, verified, and its place in the server's repository."""
    about = {"name": type(one.model).__name__, "preprocessing": one.preprocessing or None, "labels": one.labels or None}
    optimized = fastgraph.optimize(one.model, (one.example,), verify=False)
    path = out / f"{one.key}.onnx"
    say(f"{path}: {to_onnx(optimized, (one.example,), path, overwrite=True, **about)}")  # type: ignore[arg-type]
    if measured:
        with TemporaryDirectory() as folder:
            plain = Path(folder) / "plain.onnx"
            to_onnx(one.model, (one.example,), plain, verify=False)
            say(compare(path, plain, one.example[:1]))
    served = out / "triton" / one.key
    (served / "1").mkdir(parents=True, exist_ok=True)
    if one.served is one.model:
        shutil.copyfile(path, served / "1" / "model.onnx")
    else:  # the server runs it on a GPU where there is one
        again = fastgraph.optimize(one.served, (one.example,), verify=False)
        to_onnx(again, (one.example,), served / "1" / "model.onnx", overwrite=True, row_blocks=False, **about)  # type: ignore[arg-type]
    if one.labels:
        files.write(served / "labels.txt", "\n".join(one.labels) + "\n")
    try:
        text = triton_config.config(served / "1" / "model.onnx", one.key, "labels.txt" if one.labels else "")
    except ValueError as error:  # a model that the server cannot batch
        shutil.rmtree(served)
        say(f"{served}: not written: {error}")
    else:
        files.write(served / "config.pbtxt", text)


def draw_steps(drawn: Sequence[steps.Step], folder: Path, key: str, say: Say = print) -> list[tuple[str, Path]]:
    """Writes each step's picture and prints its line; returns the lines and the SVG files that there are."""
    made = []
    for number, step in enumerate(drawn, 1):
        say(str(step))
        stem = folder / f"{key}_{number}_{step.layer}"
        _render(step.graph.source, stem, say)
        made.append((str(step), stem.with_name(f"{stem.name}.svg")))
    return made


def _render(source: str, stem: Path, say: Say) -> None:
    if (missing := graphs.render(source, stem)[1]) and missing != graphs.INSTALL:
        say(missing)


def _figures(one: Entry, made: Sequence[tuple[str, Path]]) -> str:
    """The eager pictures in the page itself."""
    title = f"{type(one.model).__name__}: the autograd graph, by torchviz"
    inside = "".join(_figure(line, svg) for line, svg in made)
    return f"<section><h2>{escape(title)}</h2><div class=steps>{inside}</div></section>"


def _figure(line: str, svg: Path) -> str:
    if not svg.exists() or not graphs.have_dot():
        return f"<p class=note>{escape(line)}: {escape(graphs.INSTALL)}</p>"
    encoded = base64.b64encode(svg.read_bytes()).decode()
    return (
        f'<figure><div class=scroll tabindex=0 role=group aria-label="picture of {escape(line)}">'
        f'<img alt="autograd graph of {escape(line)}" src="data:image/svg+xml;base64,{encoded}"></div>'
        f"<figcaption>{escape(line)}</figcaption></figure>"
    )


def _listed(out: Path) -> Iterator[str]:
    """Every file of the folder but the page, by its path in it."""
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        if path.name != "index.html":
            yield path.relative_to(out).as_posix()


def _links(out: Path) -> str:
    items = "".join(f'<li><a href="{escape(path, quote=True)}">{escape(path)}</a></li>' for path in _listed(out))
    return f"<section><h2>Files</h2><ul>{items}</ul></section>"


def _readme(entries: Sequence[Entry]) -> str:
    runs = [f"    python client/client.py {one.key}.onnx client/{one.sample[0]}" for one in entries if one.sample]
    clients = (
        "- `client/`: the same call from Python and from C++, and an image for each model:\n\n"
        + "\n".join(runs)
        + "\n\n  `client.cc` says how it is built.\n"
    )
    pictures = "captured, rewritten and compiled graph side by side, in one file. `pictures/`: each as DOT, SVG, PNG."
    net = (
        "\n`Net` gives all rows of a batch along one axis. The server batches along the first axis of every output,\n"
        "so `triton/net` has each image's rows apart: `[batch, rows, 1]`. Its weights are drawn, not trained.\n"
    )
    return f"""# Deployment

- `*.onnx`: the models, for any onnxruntime. Any batch; preprocessing and labels are in the files' metadata.
- `triton/`: a model repository: `tritonserver --model-repository=triton`.
{clients if runs else ""}- `index.html`: {pictures}
{net if any(isinstance(one.served, PerImage) for one in entries) else ""}"""
