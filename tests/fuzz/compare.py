"""What a call did, as far as its caller can see it, and how two such outcomes differ."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fastgraph.verify import ULPS, error, tolerance
from tests.fuzz.program import Program, is_floating

Calls = tuple[tuple[int, bool], ...]  # (batch, with gradients)
MINOR = ("strides", "gradient is None", "no error of what is unused")  # kinds that a caller hardly sees
_LOW = (torch.float16, torch.bfloat16, torch.float32)
_TO_DOUBLE = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}


@dataclass
class Outcome:
    """One call: its result, what it changed, the gradients."""

    error: str | None = None  # of the call
    exception: BaseException | None = None
    backward_error: str | None = None
    structure: Any = None
    tensors: list[torch.Tensor] = field(default_factory=list)  # copies
    layouts: list[Any] = field(default_factory=list)
    requires_grad: list[bool] = field(default_factory=list)
    aliases: list[Any] = field(default_factory=list)
    state: dict[str, torch.Tensor] = field(default_factory=dict)  # parameters, buffers, attributes, inputs: copies
    gradients: dict[str, torch.Tensor | None] = field(default_factory=dict)


@dataclass
class Difference:
    """One way in which a call differs from eager's."""

    kind: str
    detail: str


class Session:
    """Calls of one module, one after the other, with whatever state they leave behind.

    `model` has the state; `function`, if another, is what is called.
    """

    def __init__(self, program: Program, model: nn.Module, function: Callable[..., Any] | None = None) -> None:
        self.program, self.model = program, model
        self.function = model if function is None else function

    def run(self, calls: Calls) -> Iterator[Outcome]:
        """Lazily, one outcome a call."""
        return (self.call(batch, with_gradients) for batch, with_gradients in calls)

    def arguments(self, batch: int) -> tuple[Any, ...]:
        """The inputs of a call."""
        return self.program.make_inputs(batch)

    def call(self, batch: int, with_gradients: bool) -> Outcome:
        """Calls once, backward included."""
        leaves = [v.requires_grad_() if with_gradients and is_floating(v) else v for v in self.arguments(batch)]
        passed = [v.clone() if isinstance(v, torch.Tensor) and not self.program.leaf else v for v in leaves]
        self.model.zero_grad(set_to_none=True)
        outcome = Outcome()
        with torch.set_grad_enabled(with_gradients):
            try:
                result = self._invoke(passed)
            except Exception as e:
                outcome.error, outcome.exception = f"{type(e).__name__}: {e}", e
                return outcome
        owned = tensors_of(self.model) | {f"input {n}": v for n, v in self._named(passed).items()}
        results = _observe(outcome, result, owned)
        outcome.state = {name: _copy(tensor) for name, tensor in owned.items()}
        if with_gradients:
            self._backward(outcome, results, self._named(leaves))
        _forget_history(self.model)
        return outcome

    def _invoke(self, passed: list[Any]) -> Any:
        return self.function(*passed)

    def _named(self, values: Sequence[Any]) -> dict[str, torch.Tensor]:
        pairs = zip(self.program.inputs, values, strict=True)
        return {name: value for name, value in pairs if isinstance(value, torch.Tensor)}

    def _backward(self, outcome: Outcome, results: list[torch.Tensor], leaves: dict[str, torch.Tensor]) -> None:
        wanted = [t for t in results if t.is_floating_point() and t.requires_grad]
        if not wanted:
            return
        generator = torch.Generator().manual_seed(self.program.seed)
        weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in wanted]
        try:
            torch.autograd.backward(wanted, weights)
        except Exception as e:
            outcome.backward_error, outcome.exception = f"{type(e).__name__}: {e}", e
            return
        named = dict(self.model.named_parameters()) | {f"input {n}": t for n, t in leaves.items() if is_floating(t)}
        outcome.gradients = {name: None if t.grad is None else _copy(t.grad) for name, t in named.items()}


def _shaken(tensor: torch.Tensor, noise: float, generator: torch.Generator) -> torch.Tensor:
    """Every value changed by so much of itself."""
    factor = 1 + noise * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return (tensor.double() * factor).to(tensor.dtype)


class RoundedSession(Session):
    """The module as it is, with inputs and weights off by a rounding error: what its own precision makes of those, in
    backward too, where `ExactSession` computes without any."""

    def __init__(self, program: Program, seed: int) -> None:
        model = program.build()
        super().__init__(program, model)
        self.generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in tensors_of(model).values():
                if is_floating(tensor):
                    tensor.copy_(_shaken(tensor, program.eps, self.generator))

    def arguments(self, batch: int) -> tuple[Any, ...]:
        shaken = lambda v: _shaken(v, self.program.eps, self.generator) if is_floating(v) else v  # noqa: E731
        return tuple(map(shaken, super().arguments(batch)))


class ExactSession(Session):
    """The module in float64: whatever is floating within, dtypes that the source names too. `noise` changes every value
    by so much of itself, so that one sees what hangs by a thread."""

    def __init__(self, program: Program, model: nn.Module, noise: float = 0.0, seed: int = 0) -> None:
        super().__init__(program, model)
        self.noise, self.generator = noise, torch.Generator().manual_seed(seed)
        for name, tensor in tensors_of(model).items():
            if is_floating(tensor):
                _replace(model, name, tensor.double())
        if noise:
            with torch.no_grad():
                for tensor in tensors_of(model).values():
                    if is_floating(tensor):
                        tensor.copy_(self._shaken(tensor))

    def arguments(self, batch: int) -> tuple[Any, ...]:
        return tuple(self._shaken(v.double()) if is_floating(v) else v for v in super().arguments(batch))

    def _shaken(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.noise:
            return tensor
        return _shaken(tensor, self.noise, self.generator)

    def _invoke(self, passed: list[Any]) -> Any:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with _InDouble(self._shaken if self.noise else None):
                return self.function(*passed)
        finally:
            torch.set_default_dtype(before)


def exact_session(program: Program, noise: float = 0.0, seed: int = 0) -> ExactSession:
    """A session of the program in float64."""
    return ExactSession(program, program.build().double(), noise, seed)


_SORTING = (torch.topk, torch.Tensor.topk, torch.sort, torch.Tensor.sort, torch.argsort, torch.Tensor.argsort)
_TIE = 2.0**-10  # what equal values may differ by is this, rounded


class _InDouble(TorchFunctionMode):
    """Every floating dtype that the source names is float64.

    shaken: what makes another value of every one, where rounding is tried. Equal ones of a row (zeros behind a ReLU)
    then become unequal before they are sorted: in which order they come is nobody's promise.
    """

    def __init__(self, shaken: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()
        self._shaken = shaken

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._shaken is not None and func in _SORTING and is_floating(args[0]):
            args = (args[0] + self._shaken(torch.full_like(args[0], _TIE)) - _TIE, *args[1:])
        if func in _TO_DOUBLE:
            func = torch.Tensor.double
        args = tuple(torch.float64 if isinstance(a, torch.dtype) and a in _LOW else a for a in args)
        kwargs = {
            k: torch.float64 if isinstance(v, torch.dtype) and v in _LOW else v for k, v in (kwargs or {}).items()
        }
        result = func(*args, **kwargs)
        if self._shaken is not None and is_floating(result) and getattr(func, "__name__", "") != "__get__":
            memory = result.untyped_storage().data_ptr()
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
            if all(t.untyped_storage().data_ptr() != memory for t in tensors):
                return self._shaken(result)
        return result


class Reference:
    """Eager's outcomes of some calls, and float64's."""

    def __init__(self, program: Program, calls: Calls) -> None:
        self.program, self.calls = program, calls
        self.eager = list(Session(program, program.build()).run(calls))
        self.exact = list(exact_session(program).run(calls))
        self._shaken: list[list[Outcome]] | None = None

    @property
    def has_state(self) -> bool:
        """Does a call see what an earlier one left behind?"""
        kept = [{n: t for n, t in o.state.items() if not n.startswith("input ")} for o in self.eager if o.error is None]
        before = tensors_of(self.program.build())
        return any(not torch.equal(before[n], t) for state in kept for n, t in state.items() if n in before)

    def shaken(self, index: int) -> list[Outcome]:
        """What call `index` gives when weights and inputs are off by rounding errors: in float64, where results of
        every operator are too, and as the module is."""
        if self._shaken is None:
            sessions: list[Session] = [exact_session(self.program, 2 * self.program.eps, seed) for seed in range(4)]
            sessions += [RoundedSession(self.program, seed) for seed in range(8)]
            self._shaken = [list(session.run(self.calls)) for session in sessions]
        return [run[index] for run in self._shaken]


def compare(reference: Reference, index: int, actual: Outcome) -> list[Difference]:
    """How a call differs from eager's, the gravest first."""
    eager = reference.eager[index]
    if eager.error is not None:
        if actual.error is not None:
            return []
        batch, with_gradients = reference.calls[index]
        used = reference.program.without_unused_steps()
        unused = Session(used, used.build()).call(batch, with_gradients).error is None  # a compiler leaves it out
        return [Difference(f"no error{' of what is unused' if unused else ''}", f"eager raises {eager.error}")]
    if actual.error is not None:
        return [Difference(f"raises {type(actual.exception).__name__}", actual.error)]
    if actual.structure != eager.structure:
        return [Difference("structure", f"{actual.structure}, eager's {eager.structure}")]
    found = list(_compare_values(reference, index, actual))
    if eager.backward_error is None and actual.backward_error is not None:
        found.append(Difference("backward raises", actual.backward_error))
    for kind, ours, own in (
        ("requires_grad", actual.requires_grad, eager.requires_grad),
        ("alias", actual.aliases, eager.aliases),
        ("strides", actual.layouts, eager.layouts),
    ):
        found += [
            Difference(kind, f"output {i}: {a}, eager's {e}")
            for i, (a, e) in enumerate(zip(ours, own, strict=True))
            if a != e
        ]
    return sorted(found, key=lambda difference: difference.kind in MINOR)


def _compare_values(reference: Reference, index: int, actual: Outcome) -> Iterator[Difference]:
    eager, exact = reference.eager[index], reference.exact[index]
    groups: list[tuple[str, Callable[[Outcome], dict[Any, Any]]]] = [
        ("value", lambda o: dict(enumerate(o.tensors))),
        ("state", lambda o: o.state),
        ("gradient", lambda o: o.gradients),
    ]
    for kind, of in groups:
        if kind == "gradient" and (eager.backward_error or actual.backward_error):
            continue
        for name, own in of(eager).items():
            if name not in of(actual):  # a file has no attributes
                continue
            ours = of(actual)[name]
            if own is None or ours is None:
                yield from _compare_none(kind, name, ours, own)
                continue

            def shaken(of: Any = of, name: Any = name) -> list[Any]:
                return [of(outcome).get(name) for outcome in reference.shaken(index)]

            slack = _gradient_slack(eager) if kind == "gradient" else 0.0
            said = differs(ours, own, of(exact).get(name), shaken, reference.program.eps, slack)
            if said:
                alike = (own.dtype == ours.dtype, own.shape == ours.shape)
                what = {(True, True): kind, (True, False): "shape"}.get(alike, "dtype")
                yield Difference(what, f"{kind} {name}: {said}")


def _gradient_slack(eager: Outcome) -> float:
    """What a gradient may be off: gradients run through other operators than eager's (a layer is computed again, heads
    of attention in another order), and what cancels is rounding of the largest; a wrong backward is off by more."""
    sizes = [
        g.abs().double().nan_to_num(0.0, 0.0, 0.0).max().item()
        for g in eager.gradients.values()
        if g is not None and g.numel()
    ]
    return 2**-13 * max(sizes, default=0.0)


def _compare_none(kind: str, name: Any, ours: torch.Tensor | None, own: torch.Tensor | None) -> Iterator[Difference]:
    if ours is own:
        return
    there = ours if own is None else own
    assert there is not None
    what = f"None, eager's {_few(there)}" if ours is None else f"{_few(there)}, eager's None"
    yield Difference("gradient is None" if not there.any() else kind, f"{kind} {name}: {what}")


def differs(
    actual: torch.Tensor,
    eager: torch.Tensor,
    exact: torch.Tensor | None,
    shaken: Callable[[], Sequence[torch.Tensor | None]],
    eps: float,
    slack: float = 0.0,
) -> str | None:
    """What is wrong with `actual`, if anything.

    Floating: more error against float64 than `fastgraph.verify.tolerance` allows, and than rounding errors in the
    inputs and weights do. Others: not eager's where float64 has eager's, however inputs and weights are rounded.
    """
    if actual.dtype != eager.dtype or actual.shape != eager.shape:
        return f"{actual.dtype} {list(actual.shape)}, eager's {eager.dtype} {list(eager.shape)}"
    if torch.equal(actual, eager):
        return None
    if exact is None or exact.shape != eager.shape:
        return None  # float64 took another way: nothing to compare with
    if not eager.is_floating_point():
        stable = torch.equal(exact.to(eager.dtype), eager) and all(
            s is not None and torch.equal(s.to(eager.dtype), eager) for s in shaken()
        )
        return f"{_few(actual)}, eager's {_few(eager)}" if stable else None
    exact = exact.double()
    finite = exact[exact.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    found, allowed = error(actual, exact), tolerance(eager, exact) + (ULPS * eps * largest if eps > 1e-4 else 0.0)
    allowed += slack
    if found <= allowed or not math.isfinite(error(eager, exact)):
        return None
    spread = max(error(s, exact) if s is not None else math.inf for s in shaken())
    if found <= allowed + 2 * spread:
        return None
    return f"error {found:.3g} against float64, allowed {allowed:.3g} ({_few(actual)}, eager's {_few(eager)})"


def _few(tensor: torch.Tensor) -> str:
    values = tensor.detach().flatten()[:4].tolist()
    return (
        "["
        + ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
        + ("...]" if tensor.numel() > 4 else "]")
    )


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, buffers and plain tensor attributes by their dotted names."""
    found = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for prefix, layer in model.named_modules():
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor):
                found[f"{prefix}.{name}".lstrip(".")] = value
    return found


def _replace(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    prefix, _, attribute = name.rpartition(".")
    layer = model.get_submodule(prefix)
    if attribute in vars(layer):
        setattr(layer, attribute, tensor)


def _forget_history(model: nn.Module) -> None:
    """What a user does between two steps: state does not carry the graph of the last one."""
    for name, tensor in tensors_of(model).items():
        if tensor.grad_fn is not None:
            prefix, _, attribute = name.rpartition(".")
            layer = model.get_submodule(prefix)
            slot = layer._buffers if attribute in layer._buffers else vars(layer)
            slot[attribute] = tensor.detach()


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _observe(outcome: Outcome, result: Any, owned: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Fills in what the result looks like and returns its tensors."""
    results: list[torch.Tensor] = []
    outcome.structure = _structure(result, results)
    places: dict[str, torch.Tensor] = dict(owned)
    for i, tensor in enumerate(results):
        outcome.tensors.append(_copy(tensor))
        outcome.requires_grad.append(tensor.requires_grad)
        outcome.layouts.append(_layout(tensor))
        outcome.aliases.append(_alias(tensor, places))
        places[f"output {i}"] = tensor
    return results


def _structure(value: Any, results: list[torch.Tensor]) -> Any:
    """Types and Python values; tensors are collected in `results`."""
    if isinstance(value, torch.Tensor):
        results.append(value)
        return type(value).__name__
    if isinstance(value, dict):
        return {"dict": [(key, _structure(v, results)) for key, v in value.items()]}
    if isinstance(value, tuple | list):
        # A file brings a namedtuple back under its name, not from its module.
        kind = type(value).__name__ if hasattr(value, "_fields") else f"{type(value).__module__}.{type(value).__name__}"
        return (kind, [_structure(v, results) for v in value])
    return (type(value).__name__, value)


def _layout(tensor: torch.Tensor) -> str:
    if tensor.is_contiguous():
        return "contiguous"
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    dense = torch.empty_like(tensor).stride() == tensor.stride()
    return f"dense, order {sorted(range(tensor.dim()), key=lambda d: -tensor.stride(d))}" if dense else "strided"


def _alias(tensor: torch.Tensor, places: dict[str, torch.Tensor]) -> Any:
    """Whose memory the tensor is, and which of its elements, in whatever order they lie there."""
    pointer = tensor.untyped_storage().data_ptr()
    owners = {name: t for name, t in places.items() if pointer and t.untyped_storage().data_ptr() == pointer}
    if not owners:
        return "its own memory"
    owner = next(iter(owners.values()))
    where = f"offset {tensor.storage_offset()}, strides {tuple(tensor.stride())}"
    if owner.element_size() == tensor.element_size():
        places_of = torch.arange(tensor.untyped_storage().nbytes() // tensor.element_size())
        elements = torch.full_like(places_of, -1)
        part = places_of.as_strided(owner.shape, owner.stride(), owner.storage_offset()).flatten()
        elements[part] = torch.arange(owner.numel())  # of an expanded owner some are at the same place
        seen = elements.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).flatten().tolist()
        where = f"elements {seen}"
    return f"memory of {', '.join(owners)}, {where}"
