"""The engine on CUDA: torch.compile over the rewritten graph, CUDA graphs around it, and measuring on request."""

import functools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from fastgraph.folded import Folded
from fastgraph.kernels.cuda import choices, dispatch
from fastgraph.kernels.cuda.target import unavailable
from fastgraph.kernels.library import Op
from fastgraph.program import Program
from fastgraph.rewrite.rule import is_mutation

MODES = {"inductor": "reduce-overhead", "max-autotune": "max-autotune"}  # engine: torch.compile's mode


def check_available(device: torch.device, what: str) -> None:
    """RuntimeError where `what` is on a CUDA device and there is none."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"{what}: on {device}, but PyTorch finds no CUDA GPU on this machine")


def is_on_cuda(tensors: Iterable[Any]) -> bool:
    """Whether one of the values is a tensor on CUDA."""
    return any(isinstance(t, torch.Tensor) and t.device.type == "cuda" for t in tensors)


def why_no_triton(tensors: Iterable[Any]) -> str | None:
    """Why no Triton kernel runs on the CUDA device of these tensors; None if they do."""
    devices = dict.fromkeys(t.device for t in tensors if is_on_cuda([t]))
    return next((reason for d in devices if (reason := unavailable(d, torch.float32))), None)


def compiled(module: nn.Module, graph_module: fx.GraphModule, engine: str) -> Callable[..., Sequence[Any]]:
    """The graph by Inductor in the engine's mode, with CUDA graphs for calls without gradients. `module` has the
    parameters.

    A replayed CUDA graph writes its results over those of the call before: each call returns copies, which are small
    beside what the kernels read. Inductor keeps compiled graphs across processes; the tag tells apart those that were
    compiled with other measured choices.
    """
    writes = any(is_mutation(node) for node in graph_module.graph.nodes)  # to what would count as constant
    folded = None if writes else Folded(Program(module, graph_module.graph, pack=False))
    compile = functools.cache(partial(torch.compile, dynamic=True, mode=MODES[engine]))
    tag = f"fastgraph {choices.digest()}"
    seen: set[Any] = set()

    def call(*flat: Any) -> list[Any]:
        function = compile(graph_module if folded is None else folded.fresh())
        dispatch.provide_scratch()
        torch.compiler.cudagraph_mark_step_begin()
        shapes = tuple(t.shape if isinstance(t, torch.Tensor) else t for t in flat)
        if shapes in seen:
            results = function(*flat)
        else:
            with torch.compiler.config.patch(cache_key_tag=tag):  # type: ignore[attr-defined]  # only a new shape can need a compilation
                results = function(*flat)
            seen.add(shapes)
        return [t.clone() if isinstance(t, torch.Tensor) else t for t in results]

    return call


class Tuner(fx.Interpreter):
    """Runs a graph and measures every fused op on the tensors that reach it."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operator's result; a fused op's kernels are measured first."""
        if (op := Op.of(target)) is not None:
            dispatch.tune(op.name, args)
        return super().call_function(target, args, kwargs)
