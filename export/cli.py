"""The command line of ``python -m export``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fastgraph.export import deploy, graphs, steps
from fastgraph.export.user_model import UsageError, asked_for, shape


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, status 2."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with ``message``."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes what was asked for. Wrong arguments and what cannot be read or written are one line and status 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    keys = deploy.MODELS if arguments.model == "all" else (arguments.model,)
    _check(arguments, parser)
    if not graphs.have_dot():
        print(graphs.INSTALL)
    try:
        if arguments.image is not None:
            steps.photograph(arguments.image)  # before anything is written
        own = (
            None if _is_ours(arguments.model) else deploy.user_entry(*asked_for(arguments.model, arguments.input_shape))
        )
        if out.exists() and (not out.is_dir() or any(out.iterdir())) and not arguments.overwrite:
            parser.error(f"argument --out: {str(out)!r} exists; --overwrite replaces the files that are written")
        _make_folder(out, parser)
        if arguments.steps:
            for key in keys:
                drawn = steps.deep_steps() if key == "deep" else steps.net_steps(arguments.image)
                deploy.draw_steps(drawn, out, key)
        else:
            entries = [own] if own is not None else [deploy.entry(key, arguments.image) for key in keys]
            deploy.deploy(entries, out, measured=arguments.measure)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, UsageError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


def _is_ours(model: str) -> bool:
    return model in (*deploy.MODELS, "all")


def _check(arguments: argparse.Namespace, parser: Parser) -> None:
    """Ends with a message where arguments do not go together."""
    if arguments.image is not None and arguments.model not in ("net", "all"):
        parser.error("argument --image: is for the model net; deep reads scanned digits, your own random numbers")
    if arguments.input_shape is not None and _is_ours(arguments.model):
        parser.error("argument --input-shape: is for a model of your own; deep and net have theirs")
    if arguments.steps and not _is_ours(arguments.model):
        parser.error("argument --steps: is for deep and net")


def _make_folder(out: Path, parser: Parser) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: cannot make the folder {str(out)!r}: {error.strerror}")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m export",
        description="Writes a deployment folder: ONNX files, a Triton Inference Server repository, clients, pictures.",
    )
    parser.add_argument("--model", default="all", help="deep, net, all, or module:callable of your own (default: all)")
    parser.add_argument("--input-shape", type=shape, metavar="N,..", help="of your own model's input, the batch first")
    parser.add_argument("--out", type=Path, default=Path("out/export"), help="the folder (default: out/export)")
    parser.add_argument("--overwrite", action="store_true", help="replace files in a folder that is not empty")
    parser.add_argument("--measure", action="store_true", help="time every operator, and both exports in onnxruntime")
    parser.add_argument("--steps", action="store_true", help="only the eager pictures, layer after layer")
    parser.add_argument("--image", help="a photograph for net (default: one of scikit-learn's)")
    return parser
