"""The command line of ``python -m export``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fastgraph.export import deploy, graphs, steps


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
    if arguments.image is not None and arguments.model == "deep":
        parser.error("argument --image: is for the model net; deep reads scanned digits")
    if not graphs.have_dot():
        print(graphs.INSTALL)
    try:
        if arguments.image is not None:
            steps.photograph(arguments.image)  # before anything is written
        if out.exists() and (not out.is_dir() or any(out.iterdir())) and not arguments.overwrite:
            parser.error(f"argument --out: {str(out)!r} exists; --overwrite replaces the files that are written")
        _make_folder(out, parser)
        keys = deploy.MODELS if arguments.model == "all" else (arguments.model,)
        if arguments.steps:
            for key in keys:
                drawn = steps.deep_steps() if key == "deep" else steps.net_steps(arguments.image)
                deploy.draw_steps(drawn, out, key)
        else:
            deploy.deploy(keys, out, image=arguments.image, measured=arguments.measure)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


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
    parser.add_argument("--model", choices=(*deploy.MODELS, "all"), default="all", help="which model (default: all)")
    parser.add_argument("--out", type=Path, default=Path("out/export"), help="the folder (default: out/export)")
    parser.add_argument("--overwrite", action="store_true", help="replace files in a folder that is not empty")
    parser.add_argument("--measure", action="store_true", help="time every operator, and both exports in onnxruntime")
    parser.add_argument("--steps", action="store_true", help="only the eager pictures, layer after layer")
    parser.add_argument("--image", help="a photograph for net (default: one of scikit-learn's)")
    return parser
