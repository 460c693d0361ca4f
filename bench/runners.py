"""The backends, one function each: it takes a case and gives back something to call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from bench.cases import Case


@dataclass(frozen=True)
class Prepared:
    """A backend ready to run: ``call`` maps float32 ``[B, ...]`` to float32; ``where`` tells where it really runs."""

    call: Callable[[Tensor], Tensor]
    where: str


@dataclass(frozen=True)
class Runner:
    """A backend: its name in the report and how it is made ready for a case, at ``torch.get_num_threads()`` threads."""

    name: str
    prepare: Callable[[Case], Prepared]


def eager(case: Case) -> Prepared:
    """The model as it is: the baseline."""
    return Prepared(case.model, "cpu")


def compiled(case: Case) -> Prepared:
    """``torch.compile`` in its default mode; it compiles in the first call."""
    torch.compiler.reset()  # or an earlier case's graphs, of another batch, would be tried first on every call
    return Prepared(torch.compile(case.model), "cpu, inductor")


def onnxruntime(case: Case) -> Prepared:
    """The model as a plain ONNX file in onnxruntime.

    A call includes the way between PyTorch and NumPy, which copies nothing; it is what a user of PyTorch would pay.
    """
    from export import session, to_onnx

    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        to_onnx(case.model, (case.x,), path)
        running = session(path, spinning=True)  # its own default
    return Prepared(
        lambda x: torch.from_numpy(running.run(None, {"input": x.numpy()})[0]), ", ".join(running.get_providers())
    )


def ours(case: Case) -> Prepared:
    """``fastgraph.optimize`` on the model."""
    import fastgraph

    return Prepared(fastgraph.optimize(case.model, (case.x,)), f"cpu, {fastgraph.cpu_capability()}")


BASELINE = Runner("eager", eager)
OURS = Runner("fastgraph", ours)
RUNNERS = (BASELINE, Runner("torch.compile", compiled), Runner("onnxruntime", onnxruntime), OURS)
