"""`optimize` and the module that it returns."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)
from torch.utils import _pytree as pytree

from fastgraph import cuda
from fastgraph.arguments import Signature, check_leaves, constant_key
from fastgraph.capture import capture, check_example_inputs, unwrapped
from fastgraph.captured import Captured, grad_facts, written
from fastgraph.explanation import Explanation, explain
from fastgraph.kernels.cuda import choices
from fastgraph.kernels.native import cpu_capability
from fastgraph.kernels.structure import Structure
from fastgraph.rewrite import Rewritten
from fastgraph.specialization import Specialization
from fastgraph.structure import Fingerprint, modes
from fastgraph.tracing import REGISTRIES
from fastgraph.verify import verify as verify_module

ENGINES = ("auto", "direct", "inductor", "max-autotune")
LIMIT = 16  # graphs a module
_ACCEPTED = 4096  # forms of inputs that are remembered as checked


def optimize(
    model: nn.Module,
    example_inputs: Sequence[Any] = (),
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    engine: str = "auto",
    verify: bool = True,
) -> "OptimizedModule":
    """Returns a module that computes what `model` computes, faster.

    model: any module that torch.export takes, in eval mode where it has dropout or batch-norm. It is not changed; the
        result shares its parameters, so training either is seen by both, and so is whatever else is changed in it.
    example_inputs, example_kwargs: the model's arguments, as a tuple and by name. Sizes that the model leaves free stay
        free; for inputs that the graph does not hold for (another dtype, a batch of 1 where torch.export makes a
        difference, another branch of `forward`) the model is captured anew in the first such call.
    dtype: computes in this floating dtype (torch.bfloat16, ...); parameters, inputs and outputs keep theirs.
    engine: "direct" runs the rewritten graph as it is, "inductor" through torch.compile, on CUDA with CUDA graphs
        (its mode "reduce-overhead"); "auto" is direct on the CPU and inductor on CUDA. "max-autotune" is
        torch.compile's mode of that name, and on CUDA first measures the fused ops' kernels at the example's sizes:
        which tiles, and one launch or a kernel a layer. What was fastest is kept for later processes.
    verify: compares the result on the example inputs with float64 before returning.

    Errors: TypeError or ValueError for wrong arguments; RuntimeError, naming the cause, where the model cannot be
    captured, needs a device that is not there, or fails verification.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: needs one of {', '.join(ENGINES)}, got {engine!r}")
    model = unwrapped(model)
    inputs = check_example_inputs(example_inputs)
    captured = capture(model, inputs, example_kwargs)
    optimized = OptimizedModule(model, [captured], dtype=dtype, engine=engine)
    args, kwargs = captured.signature.canonical(inputs, example_kwargs or {})
    if engine == "max-autotune":
        optimized.tune(*args, **kwargs)
    if verify:
        optimized.notes.append(verify_module(optimized, captured, args, dtype, kwargs))
    return optimized


class OptimizedModule(nn.Module):
    """A captured and rewritten module; made by `optimize` and `load`.

    It has the original's parameters, buffers and layers under their own names. Call it as the original. `explain()`
    tells what became of every operator.
    """

    _original: nn.Module
    _signature: Signature
    _is_loaded: bool
    _training: dict[nn.Module, bool]
    _structure: Any
    _fingerprint: Fingerprint
    _doors: list[Any]
    _accepted: dict[Any, Specialization]
    _refused: dict[Any, tuple[type[Exception], str]]
    _looks_closer: bool
    _lock: Any
    specializations: list[Specialization]
    dtype: torch.dtype | None
    asked_engine: str
    notes: list[str]

    def __init__(
        self,
        model: nn.Module,
        captures: Sequence[Captured],
        *,
        dtype: torch.dtype | None,
        engine: str,
        is_loaded: bool = False,
    ) -> None:
        super().__init__()
        own: dict[str, Any] = dict(
            _original=model,
            _is_loaded=is_loaded,
            dtype=dtype,
            asked_engine=engine,
            notes=[],
            _lock=threading.RLock(),
            _training={module: module.training for module in model.modules()},
            _signature=captures[0].signature,
        )
        self.__dict__.update(own)
        for slots in REGISTRIES:  # both read the very dictionaries of the original, so that a change is seen
            self.__dict__[slots] = model.__dict__[slots]
        self.__dict__["training"] = model.training and not _eval_only(captures)
        self._watch()
        self.__dict__["specializations"] = [self._specialize(captured) for captured in captures]
        self.__dict__["_looks_closer"] = any(map(_looks_closer, captures))

    def _watch(self) -> None:
        """Takes the original as it is now for what the graphs stand for."""
        self.__dict__.update(
            _structure=Structure(list(self._original.modules())),
            _fingerprint=Fingerprint(self._original),
            specializations=[],
            _doors=[],
            _accepted={},
            _refused={},
        )

    def _specialize(self, captured: Captured) -> Specialization:
        engine = self.asked_engine
        return Specialization(self._original, captured, dtype=self.dtype, engine=engine, structure=self._structure)

    @property
    def captured(self) -> Captured:
        """The first captured graph."""
        return self.specializations[0].captured

    @property
    def rewritten(self) -> Rewritten:
        """The first graph, rewritten."""
        return self.specializations[0].rewritten

    @property
    def engine(self) -> str:
        """What runs the graphs: one of `ENGINES` but "auto"."""
        return self.specializations[0].engine

    def captures(self) -> list[Captured]:
        """All captured graphs, one for each class of calls so far."""
        return [s.captured for s in self.specializations]

    def capture_batches(self) -> None:
        """Captures what calls with a batch of 1 and of more need, as far as the model takes them.

        For a file: what is loaded from it cannot be captured anew. The batch is axis 0 of every tensor that has the
        first one's size there; where the model does not take that, of those that the graph needs to have the same.
        """
        captured = self.captured
        for batch in () if self._is_loaded or captured.state else (1, 3):
            for related in (False, True):
                leaves = captured.example(batch, related=related)
                if self._find(leaves, captured.in_spec) is not None:
                    break
                args, kwargs = pytree.tree_unflatten(leaves, captured.in_spec)
                with suppress(Exception), modes(self._original, self._training):
                    self.specializations.append(self._specialize(capture(self._original, args, kwargs)))
                    break

    def tune(self, *args: Any, **kwargs: Any) -> None:
        """Measures the fused ops' kernels on CUDA at the sizes of these inputs, for this and later processes.

        Does nothing on the CPU, whose kernels have no choice to make.
        """
        chosen, tensors = self._select(args, kwargs)
        chosen.tune(tensors)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module`; where nobody hooks in, without its two calls on the way to `forward` (0.6 of 5.4 us)."""
        hooks = self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks
        hooks = hooks or _global_forward_hooks or _global_forward_pre_hooks
        hooks = hooks or _global_backward_hooks or _global_backward_pre_hooks
        if hooks or self._compiled_call_impl is not None or is_compiling():
            return super().__call__(*args, **kwargs)
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's result for these inputs; the original's kind of error where they are wrong."""
        if not is_compiling() and not kwargs:
            for door in self._doors:
                result = door(*args)
                if result is not None:
                    return result
        return self._general(args, kwargs)

    def _general(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_compiling():
            return self._in_a_trace(args, kwargs)
        chosen, tensors = self._select(args, kwargs)
        captured = chosen.captured
        if captured.state or (captured.custom_gradients and chosen.wants_grad(tensors)):
            return self._run_original(args, kwargs)
        door = chosen.door
        results = chosen.run(tensors)
        if chosen not in self.specializations:  # captured in this call, and right: it did not raise
            self.specializations.append(chosen)
            self.__dict__["_looks_closer"] |= _looks_closer(captured)
        if chosen.door is not door:
            self.__dict__["_doors"] = [s.door for s in self.specializations if s.door is not None]
        if captured.out_spec.is_leaf():
            return results[0]  # 1 us less
        return pytree.tree_unflatten(list(results), captured.out_spec)

    def _in_a_trace(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Under torch.compile and torch.export: the graph with fused ops, or the original where there are several."""
        (chosen, *others) = self.specializations
        captured = chosen.captured
        if (others or captured.state or captured.custom_gradients) and not self._is_loaded:
            return self._original(*args, **kwargs)
        chosen.ready()
        leaves = pytree.tree_leaves(captured.signature.canonical(args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return pytree.tree_unflatten(list(chosen.rewritten.graph_module(*tensors)), captured.out_spec)

    def _run_original(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Eager, in the modes that the model was captured in."""
        if self._is_loaded:
            what = ", ".join([*self.captured.custom_gradients, *self.captured.state])
            raise RuntimeError(f"module: gradients of {what} are Python code, which a file does not hold")
        if all(self._training.get(m, m.training) == m.training for m in self._original.modules()):
            return self._original(*args, **kwargs)
        with self._lock, modes(self._original, self._training):
            return self._original(*args, **kwargs)

    def _select(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Specialization, list[torch.Tensor]]:
        """The graph for these inputs, captured now if there is none, and the tensors among them."""
        if not self._structure.unchanged():
            self._follow()
        leaves, spec = self._flatten(args, kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        key: Any = (spec, *(_form(leaf) for leaf in leaves))
        if self._looks_closer:
            key = (*key, grad_facts(tensors), *(t.stride() for t in tensors))
        chosen = self._accepted.get(key)
        if chosen is None:
            with self._lock:
                chosen = self._find(leaves, spec) or self._capture_anew(args, kwargs, leaves, spec, key)
            if chosen in self.specializations:
                if len(self._accepted) >= _ACCEPTED:
                    self._accepted.clear()
                self._accepted[key] = chosen
        return chosen, tensors

    def _flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], Any]:
        first = self.specializations[0].captured if self.specializations else None
        plain = first is not None and not kwargs and len(args) == first.plain_arguments
        if first is not None and plain and all(isinstance(a, torch.Tensor) for a in args):
            return list(args), first.in_spec
        signature = self._signature
        args, kwargs = signature.canonical(args, kwargs)
        leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
        if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            check_leaves(leaves, signature.names(args, kwargs))
        return leaves, spec

    def _find(self, leaves: list[Any], spec: Any) -> Specialization | None:
        for chosen in self.specializations:
            if chosen.captured.in_spec == spec and chosen.captured.refusal(leaves) is None:
                return chosen
        return None

    def _capture_anew(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], leaves: list[Any], spec: Any, key: Any
    ) -> Specialization:
        """A graph for inputs that none holds for; an error where there can be none."""
        if (refused := self._refused.get(key)) is not None:
            kind, text = refused
            raise kind(text)
        reason = self._why_none(leaves, spec)
        if self._is_loaded:
            raise _more(reason, "the module was loaded from a file and cannot be captured anew")
        if len(self.specializations) >= LIMIT:
            raise _more(reason, f"{LIMIT} graphs have been captured, which is the limit")
        try:
            with modes(self._original, self._training):
                captured = capture(self._original, tuple(args), kwargs)
            self._check_pinned(captured, spec)
        except Exception as error:
            cause = str(error).rpartition(": torch.export cannot capture ")[2]
            refusal = _more(reason, f"the model cannot be captured for it: {cause}")
            if len(self._refused) >= _ACCEPTED:
                self._refused.clear()
            self._refused[key] = type(refusal), str(refusal)
            raise refusal from error
        return self._specialize(captured)

    def _why_none(self, leaves: list[Any], spec: Any) -> Exception:
        """Why the first graph for inputs of this structure does not hold."""
        for specialization in self.specializations:
            captured = specialization.captured
            if captured.in_spec == spec and (error := captured.refusal(leaves)) is not None:
                return error
        if not self.specializations:
            return RuntimeError("model: has changed")
        needed = self.captured.in_spec
        return TypeError(f"inputs: needs the structure of the example inputs, {written(needed)}, got {written(spec)}")

    def _check_pinned(self, captured: Captured, spec: Any) -> None:
        """RuntimeError where a size, not the batch's, is one that torch.export fixes every time: no graph for each."""
        fixed = {(name, axis): size for name, axis, size in captured.fixed_sizes() if axis > 0 and size > 1}
        for other in self.captures():
            for name, axis, size in other.fixed_sizes() if other.in_spec == spec else ():
                if size > 1 and fixed.get((name, axis), size) != size:
                    raise RuntimeError(f"torch.export fixes {name}.shape[{axis}] whatever it is")

    def _follow(self) -> None:
        """Brings the graphs up to date with an original that has changed."""
        with self._lock:
            if self._structure.unchanged():
                return
            before, specializations = self._fingerprint, self.specializations
            now = Fingerprint(self._original)
            changes = now.changes(before)
            if changes and self._is_loaded:
                what = ", ".join(changes)
                raise RuntimeError(f"module: {what} changed; it was loaded from a file and cannot be captured anew")
            self._watch()
            if not changes:
                for specialization in specializations:
                    specialization.follow(self._structure)
                self.__dict__["specializations"] = specializations

    def train(self, mode: bool = True) -> "OptimizedModule":
        """Gradients flow in any mode; a model with dropout or batch-norm stays captured in eval mode.

        RuntimeError for train(True) on such a model: capture knows no training behaviour of these layers. The modes of
        the original's layers stay what they are.
        """
        if mode and (layers := _eval_only(self.captures())):
            raise RuntimeError(f"train: {', '.join(layers)} is captured in eval mode; train the original model instead")
        self.training = mode
        return self

    def explain(self) -> Explanation:
        """What became of each operator of the original: fused into what, run by which kernel, or why not."""
        if not self.specializations:
            raise RuntimeError("explain: the model has changed; call the module once, which captures it anew")
        first, *others = self.specializations
        if first.on_cuda:
            mode = f" (torch.compile, mode {cuda.MODES[self.engine]})" if self.engine in cuda.MODES else ""
            engine = f"engine: {self.engine}{mode}; measured choices: {choices.path()}"
        else:
            engine = f"engine: {self.engine}; CPU kernels: {cpu_capability()}"
        return explain(first.captured, first.rewritten, [engine, *_notes(first, others), *self.notes])

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._original._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._original._load_from_state_dict(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """The original's attributes, where this module has none of that name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_original"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Parameters, buffers, layers, and attributes that the original has are the original's."""
        original = self.__dict__.get("_original")
        if original is not None and name not in self.__dict__ and name in vars(original):
            setattr(original, name, value)
        else:
            super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> "OptimizedModule":
        """A copy with parameters of its own."""
        original = deepcopy(self._original, memo)
        copied = OptimizedModule(
            original,
            [captured.over(original, memo) for captured in self.captures()],
            dtype=self.dtype,
            engine=self.asked_engine,
            is_loaded=self._is_loaded,
        )
        copied.notes += self.notes
        copied.training = self.training
        return copied

    def __reduce__(self) -> Any:
        raise TypeError("OptimizedModule: cannot be pickled; use fastgraph.save(module, path) and fastgraph.load(path)")


def _looks_closer(captured: Captured) -> bool:
    """Whether a graph depends on strides, or on what wants gradients."""
    return captured.strides is not None or captured.grads is not None


def _more(error: Exception, what: str) -> Exception:
    """An error of the same kind that says more."""
    return type(error)(f"{error}; {what}")


def _form(leaf: Any) -> Any:
    """What of an input decides which graph holds for it."""
    if isinstance(leaf, torch.Tensor):
        return leaf.shape, leaf.dtype, leaf.device, leaf.layout
    return constant_key(leaf)


def _eval_only(captures: Sequence[Captured]) -> list[str]:
    """Layers that were captured in eval mode and behave otherwise in training."""
    switches = ("train", "training", "use_input_stats")
    found = []
    for captured in captures:
        for node in captured.nodes:
            schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
            if schema is not None and any(argument.name in switches for argument in schema.arguments):
                found.append(node.name)
    return list(dict.fromkeys(found))


def _notes(first: Specialization, others: Sequence[Specialization]) -> list[str]:
    captured = first.captured
    notes = []
    if captured.state:
        notes.append(f"runs the original: forward keeps {', '.join(captured.state)} from call to call")
    if captured.custom_gradients:
        names = ", ".join(captured.custom_gradients)
        notes.append(f"calls that want gradients run the original: {names} has a backward of its own")
    if captured.unseen:
        notes.append(f"forward sets {', '.join(captured.unseen)}, which no result depends on: not updated here")
    for other in others:
        what = ", ".join(other.captured.differences(captured)) or "other facts"
        notes.append(f"captured again for inputs with {what}")
    return notes
