"""Does the optimized module compute what the model computes?"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fastgraph.capture import Captured, check_inputs
from fastgraph.rewrite.rule import is_mutation

ULPS = 8
SAMPLES = 2
INFINITY = float("inf")


def tolerance(eager: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest error that still counts as the same numbers: twice eager's own against the float64 `reference`,
    plus `ULPS` units in the last place (of eager's dtype) of the reference's largest finite magnitude."""
    if reference.numel() == 0:
        return 0.0
    own = error(eager, reference)
    finite = reference[reference.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    return 2 * own + ULPS * torch.finfo(eager.dtype).eps * largest


def error(actual: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference where `reference` is finite; infinity where NaN or infinities are not where it has them."""
    if actual.shape != reference.shape:
        return INFINITY
    if reference.numel() == 0:
        return 0.0
    finite, actual = reference.isfinite(), actual.double()
    if not torch.equal(actual[~finite].nan_to_num(nan=0.5), reference[~finite].nan_to_num(nan=0.5)):
        return INFINITY
    difference = (actual - reference)[finite].abs()
    return difference.nan_to_num(nan=INFINITY, posinf=INFINITY).max().item() if difference.numel() else 0.0


def verify(
    optimized: Callable[..., Any], captured: Captured, example_inputs: tuple[Any, ...], dtype: torch.dtype | None
) -> str:
    """Runs both on the example inputs and returns a line for `explain()`.

    RuntimeError where an output is farther from float64 than `tolerance` allows for eager in `dtype` (None: its own).
    """
    if reason := _not_repeatable(captured):
        return f"not verified: {reason}"
    flat = _few_samples(captured, pytree.tree_leaves((example_inputs, {})))
    eager = run(captured, flat, dtype)
    reference = run(captured, flat, torch.float64)
    if eager is None or reference is None:
        return "not verified: an operator of the model does not run in float64 (or the dtype asked for)"
    with torch.no_grad():
        args, kwargs = pytree.tree_unflatten(deepcopy(flat), captured.in_spec)
        actual = pytree.tree_leaves(optimized(*args, **kwargs))
    worst = 0.0
    for i, (a, e, r) in enumerate(zip(actual, eager, reference, strict=True)):
        if not isinstance(e, torch.Tensor) or not e.is_floating_point():
            if not (torch.equal(a, e) if isinstance(e, torch.Tensor) else a == e):
                raise RuntimeError(f"verify: output {i} differs from eager's")
            continue
        found, allowed = error(a, r), max(tolerance(e, r), tolerance(e.to(a.dtype), r))
        if not found <= allowed:
            raise RuntimeError(f"verify: output {i}: error {found:.3g} against float64, allowed {allowed:.3g}")
        worst = max(worst, found)
    return f"verified on the example inputs: largest error against float64 {worst:.2g}"


def _few_samples(captured: Captured, flat: list[Any]) -> list[Any]:
    """The first `SAMPLES` samples of a larger batch, if the graph takes so few: float64 is slow."""
    few = [v[:SAMPLES] if isinstance(v, torch.Tensor) and v.dim() else v for v in flat]
    try:
        check_inputs(captured, few)
    except RuntimeError:
        return flat
    return few


def _not_repeatable(captured: Captured) -> str | None:
    """Why the model may not simply be run once more, if so."""
    for node in captured.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return f"{node.name} draws random numbers"
        if is_mutation(node) and any(arg.op == "get_attr" for arg in node.all_input_nodes):
            return f"{node.name} writes to a buffer"
    return None


def run(captured: Captured, flat: list[Any], dtype: torch.dtype | None) -> list[Any] | None:
    """The captured graph's outputs in another dtype; None where one of its operators insists on its own."""

    def convert(value: Any) -> Any:
        floating = dtype is not None and isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else deepcopy(value)

    graph_module = captured.graph_module if dtype is None else deepcopy(captured.graph_module).to(dtype)
    try:
        with torch.no_grad():
            return pytree.tree_leaves(graph_module(*(convert(v) for v in flat)))
    except RuntimeError:
        if dtype is None:
            raise
        return None
