"""Which of a module's graphs holds for a call; one is captured where none does."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastgraph.arguments import check_leaves, constant_key
from fastgraph.capture import capture
from fastgraph.captured import Captured, grad_facts, written
from fastgraph.kernels.structure import Structure
from fastgraph.specialization import Specialization
from fastgraph.structure import Fingerprint, modes

LIMIT = 16  # graphs a module
_MAX_FORMS = 4096  # forms of inputs for which it is remembered which graph holds


class Specializations:
    """The graphs of `model`, one for each class of calls so far.

    all: in the order in which they were captured. fast_paths: of those that have one; the list stays the same object.
    training: the modes of the model's layers, in which it is captured.
    """

    def __init__(
        self, model: nn.Module, captures: Sequence[Captured], *, dtype: torch.dtype | None, engine: str, is_loaded: bool
    ) -> None:
        self.model, self.is_loaded = model, is_loaded
        self._dtype, self._engine = dtype, engine
        self.training = {module: module.training for module in model.modules()}
        self.signature = captures[0].signature
        self.lock = threading.RLock()
        self.fast_paths: list[Any] = []
        self._watch()
        self.all = [self._specialize(captured) for captured in captures]
        self._looks_closer = any(map(_looks_closer, captures))

    def _watch(self) -> None:
        """Takes the model as it is now for what the graphs stand for."""
        self._structure = Structure(list(self.model.modules()))
        self._fingerprint = Fingerprint(self.model)
        self.all = list[Specialization]()
        self.fast_paths.clear()
        # What is known of inputs of a form: their graph, or kind and text of the error that there is none.
        self._known: dict[Any, Specialization | tuple[type[Exception], str]] = {}

    def _specialize(self, captured: Captured) -> Specialization:
        return Specialization(self.model, captured, dtype=self._dtype, engine=self._engine, structure=self._structure)

    def captures(self) -> list[Captured]:
        """All captured graphs."""
        return [s.captured for s in self.all]

    def select(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Specialization, list[torch.Tensor]]:
        """The graph for these inputs, captured now if there is none, and the tensors among them."""
        if not self._structure.unchanged():
            self._follow()
        leaves, spec = self._flatten(args, kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        form: Any = (spec, *(_form(leaf) for leaf in leaves))
        if self._looks_closer:
            form = (*form, grad_facts(tensors), *(t.stride() for t in tensors))
        known = self._known.get(form)
        if isinstance(known, Specialization):
            return known, tensors
        with self.lock:
            chosen = self._find(leaves, spec) or self._capture_anew(args, kwargs, leaves, spec, form)
        if chosen in self.all:
            self._remember(form, chosen)
        return chosen, tensors

    def keep(self, chosen: Specialization) -> None:
        """A graph that was captured in this call is one of the module's; it is right, since the call did not raise."""
        if chosen not in self.all:
            self.all.append(chosen)
            self._looks_closer |= _looks_closer(chosen.captured)

    def renew_fast_paths(self) -> None:
        """After a specialization has another one than before."""
        self.fast_paths[:] = [s.fast_path for s in self.all if s.fast_path is not None]

    def _remember(self, form: Any, what: Specialization | tuple[type[Exception], str]) -> None:
        if len(self._known) >= _MAX_FORMS:
            self._known.clear()
        self._known[form] = what

    def _flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], Any]:
        first = self.all[0].captured if self.all else None
        plain = first is not None and not kwargs and len(args) == first.plain_arguments
        if first is not None and plain and all(isinstance(a, torch.Tensor) for a in args):
            return list(args), first.in_spec
        args, kwargs = self.signature.canonical(args, kwargs)
        leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
        if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            check_leaves(leaves, self.signature.names(args, kwargs))
        return leaves, spec

    def _find(self, leaves: list[Any], spec: Any) -> Specialization | None:
        for chosen in self.all:
            if chosen.captured.in_spec == spec and chosen.captured.refusal(leaves) is None:
                return chosen
        return None

    def _capture_anew(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], leaves: list[Any], spec: Any, form: Any
    ) -> Specialization:
        """A graph for inputs that none holds for; an error where there can be none."""
        known = self._known.get(form)
        if isinstance(known, tuple):
            kind, text = known
            raise kind(text)
        reason = self._why_none(leaves, spec)
        if self.is_loaded:
            raise _more(reason, "the module was loaded from a file and cannot be captured anew")
        if len(self.all) >= LIMIT:
            raise _more(reason, f"{LIMIT} graphs have been captured, which is the limit")
        try:
            with modes(self.model, self.training):
                captured = capture(self.model, tuple(args), kwargs)
            self._check_pinned(captured, spec)
        except Exception as error:
            cause = str(error).rpartition(": torch.export cannot capture ")[2]
            refusal = _more(reason, f"the model cannot be captured for it: {cause}")
            self._remember(form, (type(refusal), str(refusal)))
            raise refusal from error
        return self._specialize(captured)

    def _why_none(self, leaves: list[Any], spec: Any) -> Exception:
        """Why the first graph for inputs of this structure does not hold."""
        for specialization in self.all:
            captured = specialization.captured
            if captured.in_spec == spec and (error := captured.refusal(leaves)) is not None:
                return error
        if not self.all:
            return RuntimeError("model: has changed")
        needed = self.all[0].captured.in_spec
        return TypeError(f"inputs: needs the structure of the example inputs, {written(needed)}, got {written(spec)}")

    def _check_pinned(self, captured: Captured, spec: Any) -> None:
        """RuntimeError where a size, not the batch's, is one that torch.export fixes every time: no graph for each."""
        fixed = {(name, axis): size for name, axis, size in captured.fixed_sizes() if axis > 0 and size > 1}
        for other in self.captures():
            for name, axis, size in other.fixed_sizes() if other.in_spec == spec else ():
                if size > 1 and fixed.get((name, axis), size) != size:
                    raise RuntimeError(f"torch.export fixes {name}.shape[{axis}] whatever it is")

    def _follow(self) -> None:
        """Brings the graphs up to date with a model that has changed."""
        with self.lock:
            if self._structure.unchanged():
                return
            before, specializations = self._fingerprint, self.all
            changes = Fingerprint(self.model).changes(before)
            if changes and self.is_loaded:
                what = ", ".join(changes)
                raise RuntimeError(f"module: {what} changed; it was loaded from a file and cannot be captured anew")
            self._watch()
            if not changes:
                for specialization in specializations:
                    specialization.follow(self._structure)
                self.all = specializations

    def capture_batches(self) -> None:
        """Captures what calls with a batch of 1 and of more need, as far as the model takes them.

        For a file: what is loaded from it cannot be captured anew. The batch is axis 0 of every tensor that has the
        first one's size there; where the model does not take that, of those that the graph needs to have the same.
        """
        captured = self.all[0].captured
        for batch in () if self.is_loaded or captured.state else (1, 3):
            for related in (False, True):
                leaves = captured.example(batch, related=related)
                if self._find(leaves, captured.in_spec) is not None:
                    break
                args, kwargs = pytree.tree_unflatten(leaves, captured.in_spec)
                with suppress(Exception), modes(self.model, self.training):
                    self.all.append(self._specialize(capture(self.model, args, kwargs)))
                    break


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
