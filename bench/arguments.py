"""The command line's arguments, checked: what is wrong is one line and status 2."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
from typing import NoReturn

from fastgraph.bench.backends import BACKENDS, DTYPES
from fastgraph.bench.ceilings.roofline import GPUS
from fastgraph.bench.plan import MODES
from fastgraph.bench.zoo.table import ZOO
from fastgraph.export.user_model import number, numbers, shape

ZOO_BACKENDS = ("eager", "compile-frozen", "onnxruntime", "openvino", "fastgraph")
ALL = "all"  # the backends, at every batch size
DEVICES = ("auto", "cpu", "cuda")
UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}

EPILOG = f"""\
models, for --model: "zoo" are {len(ZOO)} networks as people bring them, with random weights; some of them by name:
zoo:resnet18,dlrm. They are
{fill(", ".join(ZOO), 116)};
"torchvision:resnet34" and "timm:resnet34" any classifiers there, several as torchvision:resnet34,swin_t;
"package.module:callable" your own, with --input-shape.
by default the zoo and the libraries are measured with {", ".join(ZOO_BACKENDS)},
at large images batch 1 alone.
backends, for --backends:
{fill(", ".join(BACKENDS), 116)};
by default each is measured everywhere but compile-max, which compiles for the first batch size of a model alone;
"{ALL}" measures it at every one, a minute more.
modes: "rounds" compares all backends in interleaved rounds; the others are MLPerf's scenarios in small.
"single-stream": one query after another at batch 1, judged by the 90th percentile over at least 1,024 queries;
"offline": samples a second over all calls of a large batch;
"server": --rate queries a second arrive at random (Poisson) and wait their turn, judged by the 99th percentile of the
time from arrival to answer; a backend that falls behind is listed as overloaded.
--pause 100us sleeps before each call, as a service does between requests; --processes 2 has two processes of each
backend call at once, with --threads threads each, on the same cores: calls a second of both together.
python -m bench perf   our kernels against the best peer and the machine's ceiling, with targets (see its --help)
python -m bench picture REPORT.json    draws a report's plot for a README, light and dark
python -m bench compare A.json B.json   compares two reports and ends with status 1 where B is slower beyond noise
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, status 2."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with ``message``."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser() -> Parser:
    """The arguments of ``python -m bench``."""
    options = Parser(
        prog="python -m bench",
        description="Throughput of small models, backend by backend, each checked against float64 before it is timed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("--model", default="all", help="deep, net, all (default), zoo, or one of your own or of a library: see below")
    add("--input-shape", type=shape, metavar="N,..", help="of your own or a library's model, the batch first")
    add("--batches", type=numbers, metavar="N,M", help="batch sizes (default: some for each model)")
    add("--device", choices=DEVICES, default="auto", help="auto: the CPU, and CUDA where it is there (default)")
    add("--dtype", type=among(tuple(DTYPES)), default=["fp32"], metavar="A,B", help="fp32, bf16 (default: fp32)")
    add("--backends", type=among((*BACKENDS, ALL)), metavar="A,B", help="default: all, compile-max at one batch size")
    add("--threads", type=number, metavar="N", help="of every backend on the CPU (default: as PyTorch chooses)")
    add("--rounds", type=number, metavar="N", help="at most so many interleaved rounds a case")
    add("--budget", type=seconds, metavar="S", help="seconds of timing a case, as many rounds as fit, at least three")
    add("--mode", "--scenario", choices=MODES, default="rounds", help="see below (default: rounds)")
    add("--rate", type=above_zero, metavar="R", help="queries a second that arrive in mode server")
    add("--pause", type=pause, default=0.0, metavar="T", help="sleep before each call: 20us, 1.5ms, 1s")
    add("--processes", type=number, default=1, metavar="N", help="of each backend at once, on the same cores")
    add("--model-gpu", choices=tuple(GPUS), help="adds the floors that a model of this GPU gives")
    add("--quick", action="store_true", help="batch 1, four backends, short rounds: a look, not a result")
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="folder for the report (default: out)")
    return options


def compare_parser() -> Parser:
    """The arguments of ``python -m bench compare``."""
    options = Parser(prog="python -m bench compare", description="Ratios of two reports, with their spread.")
    options.add_argument("before", type=Path, metavar="A.json")
    options.add_argument("after", type=Path, metavar="B.json")
    options.add_argument("--backends", type=among(tuple(BACKENDS)), default=["fastgraph"], metavar="A,B")
    options.add_argument(
        "--absolute", action="store_true", help="times as they are, not relative to eager's in each run"
    )
    options.add_argument(
        "--threshold",
        type=above_zero,
        default=0.05,
        metavar="R",
        help="slower by more than this is a regression (0.05)",
    )
    return options


def picture_parser() -> Parser:
    """The arguments of ``python -m bench picture``."""
    options = Parser(prog="python -m bench picture", description="A report's plot at a glance as PNG, light and dark.")
    options.add_argument("report", type=Path, metavar="REPORT.json")
    options.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="folder for both (default: out)")
    return options


def seconds(text: str) -> float:
    """A time above 0."""
    return _above_zero(text, "a number of seconds above 0")


def above_zero(text: str) -> float:
    """A rate, or a ratio."""
    return _above_zero(text, "a number above 0")


def pause(text: str) -> float:
    """Seconds of a time with its unit; 0 needs none."""
    parts = re.fullmatch(r"([0-9]*\.?[0-9]+) ?([a-zµ]+)", text.strip())
    if text.strip() == "0":
        return 0.0
    if parts is None or parts[2] not in UNITS_S:
        raise argparse.ArgumentTypeError(f"must be a time with its unit ({', '.join(UNITS_S)}); got {text!r}")
    return float(parts[1]) * UNITS_S[parts[2]]


def among(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of names separated by commas, each of ``known``."""

    def parse(text: str) -> list[str]:
        named = list(dict.fromkeys(name.strip() for name in text.split(",")))
        for name in named:
            if name not in known:
                raise argparse.ArgumentTypeError(f"must be of {', '.join(known)}; got {name!r}")
        return named

    return parse


def _above_zero(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be {what}; got {text!r}")
    return value
