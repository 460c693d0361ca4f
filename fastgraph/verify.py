"""Does the optimized module compute what the model computes?"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fastgraph.captured import Captured, check_inputs, flatten_inputs
from fastgraph.evaluation import Copies, UnsupportedError, evaluate, random_nodes, restored, shaken, written_tensors
from fastgraph.sums import Sums
from fastgraph.tracing import attributes_kept

ULPS = 8
CAPTURE_FACTOR = 4
SAMPLES = 2
SHAKES = 8
INFINITY = float("inf")
_SEED = 0


class WrongError(RuntimeError):
    """The optimized module computes something else than the model."""


def tolerance(eager: torch.Tensor, reference: torch.Tensor, sums: float = 0.0) -> float:
    """The largest error that still counts as the same numbers, against the float64 `reference`:

        2 error(eager) + ULPS eps max(max |reference|, S)

    eps is the unit in the last place of 1 in eager's dtype, S (`sums`) the largest max(|b| + sum |a_k w_k|) of the
    products that the reference ends with, as `fastgraph.sums` finds it; 0 where that is not known.

    Why S: a sum of n terms in floating point, added in whatever order, is off by at most (n - 1) eps/2 sum |terms| (N.
    Higham, Accuracy and Stability of Numerical Algorithms, section 4.2), and by about sqrt(n / 3) eps/2 of it where
    the roundings are random and all terms have one sign. Where the terms cancel, that is far more than ulps of the
    result: with a bias of -3 behind sums of 3.3, ten times as much. Two right programs that add in different orders
    differ by so much, and eager's own error, small at some place by chance, does not show it. Operators behind the
    product that change no value by more than their input changed carry the bound to the output. ULPS = 8 is the bound
    for n = 768; the error of longer sums shows in eager's own. What an operator makes more of (a layer norm over three
    values that are almost the same) is not in S: see `spread`.
    """
    if reference.numel() == 0:
        return 0.0
    own = error(eager, reference)
    finite = reference[reference.isfinite()].abs()
    largest = max(finite.max().item() if finite.numel() else 0.0, sums)
    return 2 * own + ULPS * torch.finfo(eager.dtype).eps * largest


def spread(graph_module: fx.GraphModule, flat: Sequence[Any], eps: float, references: Sequence[Any]) -> list[float]:
    """How far rounding, in whatever order, may take each value from its float64 reference: of `SHAKES` runs with
    roundings drawn at random the largest error (infinity where one takes another way). Eager's own error is one such
    run, whose luck a right program need not have: where the others are off by more, twice that is allowed.

    references: outputs, inputs and written buffers afterwards, as `fastgraph.evaluation.evaluate` returns them.
    """
    largest = [0.0] * len(references)
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        for _ in range(SHAKES):
            outputs, inputs, state = shaken(graph_module, flat, eps)
            for i, (value, exact) in enumerate(zip([*outputs, *inputs, *state.values()], references, strict=True)):
                if isinstance(exact, torch.Tensor) and (exact.is_floating_point() or exact.is_complex()):
                    largest[i] = max(largest[i], error(value, exact))
    return largest


def error(actual: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference where `reference` is finite; infinity where NaN or infinities are not where it has them."""
    if actual.shape != reference.shape:
        return INFINITY
    if reference.numel() == 0:
        return 0.0
    finite, actual = reference.isfinite(), actual.to(torch.promote_types(actual.dtype, torch.float64))
    if not _equal_and_not_finite(actual[~finite], reference[~finite]):
        return INFINITY
    difference = (actual - reference)[finite].abs()
    return difference.nan_to_num(nan=INFINITY, posinf=INFINITY).max().item() if difference.numel() else 0.0


def _equal_and_not_finite(actual: torch.Tensor, reference: torch.Tensor) -> bool:
    if reference.is_complex() or actual.is_complex():
        actual, reference = torch.view_as_real(actual + 0j), torch.view_as_real(reference + 0j)
        return not bool(actual.isfinite().all(-1).any())  # inf * inf is (nan, inf) or (inf, nan) by the order of sums
    return torch.equal(actual.nan_to_num(nan=0.5), reference.nan_to_num(nan=0.5))


@dataclass
class Outcome:
    """What one run left: values, and which of inputs and outputs are one memory."""

    values: list[tuple[str, Any]]  # outputs, inputs afterwards, written buffers afterwards; each with its name
    memory: tuple[int, ...]


def verify(
    optimized: Callable[..., Any],
    captured: Captured,
    example_inputs: Sequence[Any],
    dtype: torch.dtype | None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Runs both on the example inputs and returns a line for `explain()`; the model and the inputs stay as they are.

    Of inputs that are a batch only the first rows. Compared are outputs, what becomes of the inputs and of the buffers
    that the model writes, and which outputs are one memory.

    RuntimeError where a value is farther from float64 than `tolerance` allows for eager in `dtype` (None: its own), an
    integer is neither eager's nor float64's, or outputs share memory where eager's do not.
    """
    if state := getattr(captured, "state", None):
        return f"not verified: every call runs the original model, which keeps {', '.join(state)} from call to call"
    call = (tuple(example_inputs), dict(example_kwargs or {}))
    few = _first_rows(captured, call)
    if few is not None:
        try:
            return _verify(optimized, captured, few, dtype, f"the example inputs (their first {SAMPLES} rows)")
        except WrongError:
            raise
        except Exception:
            pass  # the model does not take so few, though nothing in its graph says so
    return _verify(optimized, captured, call, dtype, "the example inputs")


def _first_rows(captured: Captured, call: Any) -> Any:
    """The call with the first rows of its inputs, if axis 0 is a batch of more: float64 is slow."""
    inputs = [node.meta.get("val") for node in captured.placeholders]
    results = [getattr(n, "meta", {}).get("val") for n in pytree.tree_leaves(captured.graph.output_node().args[0])]
    sizes = [v.shape[0] if isinstance(v, torch.Tensor) and v.dim() else None for v in (*inputs, *results)]
    floating = all(isinstance(v, torch.Tensor) and v.is_floating_point() for v in inputs)
    free = all(isinstance(size, torch.SymInt) for size in sizes) and len({str(size) for size in sizes}) == 1
    tensors = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, torch.Tensor)]
    if not (floating and free) or len(tensors) != len(inputs) or any(len(t) <= SAMPLES for t in tensors):
        return None
    few = pytree.tree_map_only(torch.Tensor, lambda t: t[:SAMPLES], call)
    try:
        check_inputs(captured, flatten_inputs(captured, *few))
    except (RuntimeError, TypeError):
        return None
    return few


def _verify(optimized: Any, captured: Captured, call: Any, dtype: torch.dtype | None, on: str) -> str:
    draws = random_nodes(captured.graph)
    if draws and getattr(optimized, "engine", "direct") != "direct":
        return f"not verified: {draws[0].name} draws random numbers, and Inductor draws others than eager"
    flat = flatten_inputs(captured, *call)
    sums = Sums(captured.graph)
    try:
        eager = _seeded(draws, lambda: _outcome(captured, flat, dtype))
        reference = _seeded(draws, lambda: _outcome(captured, flat, torch.float64, sums))
    except UnsupportedError as reason:
        return f"not verified: {reason}"
    own = eager if dtype is None else _seeded(draws, lambda: _outcome(captured, flat, None))
    _check_capture(optimized, captured, call, own, reference, draws)
    actual = _seeded(draws, lambda: _run(optimized, captured, call))
    eps = torch.finfo(dtype if dtype is not None else torch.float32).eps
    exact = [value for _, value in reference.values]
    shakes = functools.cache(lambda: spread(captured.graph_module, flat, eps, exact))
    worst, differing = _compare(actual, eager, reference, sums.outputs(), shakes)
    if getattr(optimized, "engine", None) == "direct" and actual.memory != eager.memory:
        raise WrongError("verify: outputs share memory with one another or with inputs where eager's do not")
    rounded = f"; {differing} integer values are not eager's but float64's" if differing else ""
    return f"verified on {on}: largest error against float64 {worst:.2g}{rounded}"


def _seeded(draws: Sequence[Any], function: Callable[[], Outcome]) -> Outcome:
    """The function's result, with the same random numbers every time where the graph draws any."""
    if not draws:
        return function()
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        return function()


def _outcome(captured: Captured, flat: list[Any], dtype: torch.dtype | None, sums: Sums | None = None) -> Outcome:
    outputs, inputs, state = evaluate(captured.graph_module, flat, dtype, sums)
    return Outcome(_named(outputs, inputs, state), _memory([*inputs, *outputs]))


def _check_capture(
    optimized: Any, captured: Captured, call: Any, eager: Outcome, reference: Outcome, draws: Sequence[Any]
) -> None:
    """`WrongError` where the captured graph is not what the model computes.

    Allowed is `CAPTURE_FACTOR` times what is allowed for the graph: eager has faster ways for some layers (attention in
    one operator) that round otherwise than the operators that torch.export writes them as.
    """
    model = getattr(optimized, "_original", None)
    if model is None or getattr(optimized, "_is_loaded", False):
        return
    buffers = [b for b in model.buffers() if b.layout is torch.strided]
    with torch.no_grad(), attributes_kept(model), restored(buffers):
        own = _seeded(draws, lambda: _run(model, captured, call))
    for (name, value), (_, graph), (_, exact) in zip(own.values, eager.values, reference.values, strict=True):
        what = f"verify: {name}: the captured graph does not compute what the model does"
        if not isinstance(graph, torch.Tensor):
            if value != graph:
                raise WrongError(f"{what}: {graph!r} for {value!r}")
        elif not isinstance(value, torch.Tensor) or (value.shape, value.dtype) != (graph.shape, graph.dtype):
            raise WrongError(f"{what}: {graph.dtype} {list(graph.shape)}")
        elif graph.is_floating_point() or graph.is_complex():
            found, allowed = error(value, exact), CAPTURE_FACTOR * tolerance(graph, exact)
            if not found <= allowed and not torch.equal(value, graph):
                raise WrongError(f"{what}: {found:.3g} from float64, allowed {allowed:.3g}")
    if own.memory != eager.memory:
        raise WrongError("verify: outputs of the captured graph share memory where the model's do not")


def _run(optimized: Any, captured: Captured, call: Any) -> Outcome:
    """What a module, optimized or not, makes of copies of the inputs."""
    state = written_tensors(captured.graph_module)
    copies = Copies(leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, torch.Tensor))
    args, kwargs = pytree.tree_map(copies, call)
    looks_at_gradients = getattr(captured, "grads", None) is not None
    with ExitStack() as stack:
        stack.enter_context(nullcontext() if looks_at_gradients else torch.no_grad())
        stack.enter_context(restored(list(state.values())))
        outputs = pytree.tree_leaves(optimized(*args, **kwargs))
        inputs = flatten_inputs(captured, args, kwargs)
        memory = _memory([*inputs, *outputs])
        afterwards = {name: _now(optimized, name, tensor).detach().clone() for name, tensor in state.items()}
        outputs = [v.detach().clone() if isinstance(v, torch.Tensor) else v for v in outputs]
    return Outcome(_named(outputs, inputs, afterwards), memory)


def _now(module: Any, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What the module has under this name: forward may have given it another tensor."""
    try:
        found = operator.attrgetter(name)(module)
    except AttributeError:  # a constant of the graph
        return tensor
    return found if isinstance(found, torch.Tensor) else tensor


def _named(outputs: list[Any], inputs: list[Any], state: dict[str, torch.Tensor]) -> list[tuple[str, Any]]:
    return [
        *((f"output {i}", value) for i, value in enumerate(outputs)),
        *((f"input {i} afterwards", value) for i, value in enumerate(inputs)),
        *((f"buffer {name} afterwards", value) for name, value in state.items()),
    ]


def _memory(values: Sequence[Any]) -> tuple[int, ...]:
    """For every value the first one that has its storage."""
    storages = [
        v.untyped_storage()._cdata if isinstance(v, torch.Tensor) and v.layout is torch.strided and v.numel() else -i
        for i, v in enumerate(values, 1)
    ]
    return tuple(storages.index(storage) for storage in storages)


def _compare(
    actual: Outcome, eager: Outcome, reference: Outcome, sums: list[float], shakes: Callable[[], list[float]]
) -> tuple[float, int]:
    """(largest error of a floating value, how many integers are float64's but not eager's); `WrongError`."""
    worst, differing = 0.0, 0
    sums = sums + [0.0] * (len(actual.values) - len(sums))
    quartets = zip(actual.values, eager.values, reference.values, sums, strict=True)
    for i, ((name, a), (_, e), (_, r), s) in enumerate(quartets):
        if isinstance(e, torch.Tensor) and (e.is_floating_point() or e.is_complex()):
            found, allowed = error(a, r), max(tolerance(e, r, s), tolerance(e.to(a.dtype), r, s))
            if not found <= allowed and not (found < INFINITY and found <= 2 * shakes()[i]):
                raise WrongError(f"verify: {name}: error {found:.3g} against float64, allowed {allowed:.3g}")
            worst = max(worst, found)
        elif isinstance(e, torch.Tensor):
            differing += _integers(name, a, e, r)
        elif a != e:
            raise WrongError(f"verify: {name} differs from eager's")
    return worst, differing


def _integers(name: str, actual: torch.Tensor, eager: torch.Tensor, reference: torch.Tensor) -> int:
    """How many values are float64's but not eager's: near ties, which rounding decides."""
    if actual.shape != eager.shape or actual.dtype != eager.dtype:
        raise WrongError(f"verify: {name} differs from eager's: {actual.dtype} {list(actual.shape)}")
    other = actual != eager
    wrong = int((other & (actual != reference)).sum()) if reference.shape == eager.shape else int(other.sum())
    if wrong:
        raise WrongError(f"verify: {name} differs from eager's and float64's in {wrong} of {eager.numel()} values")
    return int(other.sum())


def run(captured: Captured, flat: list[Any], dtype: torch.dtype | None) -> list[Any] | None:
    """The captured graph's outputs in another dtype; None where one of its operators insists on its own."""
    try:
        return evaluate(captured.graph_module, flat, dtype)[0]
    except UnsupportedError:
        return None
