"""One program through every way that a user can take: `optimize`, `torch.compile`, a file, ONNX."""

import re
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import fastgraph
from fastgraph.backend import fastgraph_backend
from tests.fuzz.compare import MINOR, Calls, Difference, Outcome, Reference, Session, compare, differs, tensors_of
from tests.fuzz.program import Program

STAGES = ("optimize", "save", "compile", "onnx")
# Messages of ours begin with what they are about; "verify" is no refusal, it says that we are wrong.
_SUBJECTS = "model|inputs?|example_inputs|module|to_onnx|dtype"
_OURS = (RuntimeError, ValueError, TypeError)


@dataclass
class Finding:
    """A fault: the stage, the kind by which findings are grouped, and what came."""

    seed: int
    stage: str
    kind: str
    detail: str
    source: str = ""

    @property
    def minor(self) -> bool:
        """A difference that a caller hardly sees: listed, not counted as a failure."""
        return self.kind in MINOR


@dataclass
class Report:
    """What came of one program. `refused`: stage to reason; `foreign`: faults that torch's own backend has as well."""

    seed: int
    findings: list[Finding] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)


class Refused(Exception):
    """One of our own errors, which says why not."""


class Check:
    """Takes one program through the stages."""

    def __init__(self, program: Program) -> None:
        self.program, self.report = program, Report(program.seed)
        self._references: dict[Calls, Reference] = {}
        self._stages: tuple[str, ...] = ()
        self._fast: Any = None  # what `optimize` returned, not yet called
        self._loaded: Any = None

    def run(self, stages: tuple[str, ...]) -> Report:
        """Every stage, in the order of `STAGES`; what one refuses or fails does not stop the others."""
        self._stages = stages
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for stage in (s for s in STAGES if s in stages):
                self.report.stages.append(stage)
                try:
                    _STEPS[stage](self)
                except Refused as reason:
                    self.report.refused[stage] = str(reason)
        return self.report

    # The stages

    def _optimize(self) -> None:
        model, example = self.program.build(), self.program.make_inputs(self.program.example)
        fast = self._untouched("optimize", "optimize", model, lambda: fastgraph.optimize(model, example), example)
        if fast is None:
            return
        if self.report.findings:  # what `optimize` does to the model is one finding, what the result does another
            model = self.program.build()
            fast = fastgraph.optimize(model, example, verify=False)
        self._fast = fast
        if "save" in self._stages:
            self._save()
        self._compare("optimize", Session(self.program, model, fast), self._calls())

    def _save(self) -> None:
        """Saves what `optimize` returned before it is called: it may have state."""
        fast, self._fast = self._fast, None
        if fast is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.fastgraph"
            try:
                self._untouched("save", "save", fast, lambda: fastgraph.save(fast, path))
            except Refused as reason:
                self.report.refused["save"] = str(reason)
            self._loaded = self._ours("save", "load", lambda: fastgraph.load(path), False) if path.exists() else None

    def _load(self) -> None:
        if "optimize" not in self._stages:
            with suppress(Exception):  # that is the business of the other stage
                self._fast = fastgraph.optimize(self.program.build(), self.program.make_inputs(self.program.example))
            self._save()
        if self._loaded is not None:
            self._compare("save", Session(self.program, self._loaded), self._few_calls())

    def _compile(self) -> None:
        difference = self._compiled(fastgraph_backend)
        if difference is None:
            return
        if (other := self._compiled("aot_eager")) is not None and other.kind == difference.kind:
            self.report.foreign.append(difference.kind)
        else:
            self._add("compile", difference)

    def _compiled(self, backend: Any) -> Difference | None:
        torch.compiler.reset()
        model = self.program.build()
        session = Session(self.program, model, torch.compile(model, backend=backend))
        return self._first_difference("compile", session, self._few_calls())

    def _onnx(self) -> None:
        import onnxruntime

        from fastgraph import export

        model, example = self.program.build(), self.program.make_inputs(self.program.example)
        if self.program.training or not all(isinstance(v, torch.Tensor) for v in example):
            return  # documented: `to_onnx` needs eval mode and tensors
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            self._untouched("onnx", "to_onnx", model, lambda: export.to_onnx(model, example, path, overwrite=True))
            if not path.exists():
                return
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for batch in sorted({self.program.example, *self.program.batches[-1:]}):
            if difference := self._runtime_difference(session, batch):
                self._add("onnx", difference)
                break

    def _runtime_difference(self, session: Any, batch: int) -> Difference | None:
        reference = self._reference(((batch, False),))
        eager, exact = reference.eager[0], reference.exact[0]
        values = [v for v in self.program.make_inputs(batch) if isinstance(v, torch.Tensor)]
        fixed = [i.shape[0] for i in session.get_inputs() if i.shape and isinstance(i.shape[0], int)]
        if set(fixed) - {v.shape[0] for v in values if v.dim()}:
            return None  # a batch that torch.export fixes: documented
        if any(v.dtype is torch.bfloat16 for v in values):
            return None  # a file that only passes them on: NumPy has none of that dtype
        try:
            feeds = {i.name: v.numpy() for i, v in zip(session.get_inputs(), values, strict=True)}
            results = [torch.from_numpy(r) for r in session.run(None, feeds)]
        except Exception as error:
            return Difference(f"onnxruntime raises {type(error).__name__}", f"batch {batch}: {error}")
        leaves = [leaf for leaf in pytree.tree_leaves(self.program.build()(*values)) if leaf is not None]
        if len(results) == len(leaves):  # without the numbers, which are tensors in the file
            results = [r for r, leaf in zip(results, leaves, strict=True) if isinstance(leaf, torch.Tensor)]
        if len(results) != len(eager.tensors):
            return Difference("outputs", f"{len(results)} outputs, eager's {len(eager.tensors)}")
        for i, (ours, own) in enumerate(zip(results, eager.tensors, strict=True)):
            shaken = lambda i=i: [outcome.tensors[i] for outcome in reference.shaken(0)]  # noqa: E731
            said = differs(ours, own, exact.tensors[i], shaken, self.program.eps)
            if said:
                return Difference("value", f"batch {batch}, output {i}: {said}")
        return None

    # How a stage is carried out

    def _calls(self) -> Calls:
        """Every batch without and with gradients, each twice in a row; those where eager raises come last."""
        kinds = [(batch, grad) for grad in (False, True) for batch in self.program.batches for _ in range(2)]
        return tuple(kinds) + tuple((batch, False) for batch in self.program.failing)

    def _few_calls(self) -> Calls:
        """Two batches, one with gradients: each costs torch.compile a compilation."""
        first, last = self.program.batches[0], self.program.batches[-1]
        return ((last, False), (last, False), (first, True))

    def _reference(self, calls: Calls) -> Reference:
        if calls not in self._references:
            self._references[calls] = Reference(self.program, calls)
        return self._references[calls]

    def _untouched(self, stage: str, name: str, model: nn.Module, work: Callable[[], Any], inputs: Any = ()) -> Any:
        """Does the work; a finding where it changed the model or the inputs."""
        before = _fingerprint(model, inputs)
        result = self._ours(stage, name, work)
        changed = [name for name, mark in _fingerprint(model, inputs).items() if before.get(name) != mark]
        if changed:
            self._add(stage, Difference(f"{name} changes the model or the inputs", ", ".join(changed)))
        return result

    def _ours(self, stage: str, name: str, work: Callable[[], Any], may_refuse: bool = True) -> Any:
        try:
            return work()
        except Exception as error:
            if may_refuse and is_refusal(error, self.program):
                raise Refused(reason(error)) from error
            self._add(stage, Difference(f"{name} raises {type(error).__name__}", str(error)))
            return None

    def _compare(self, stage: str, session: Session, calls: Calls) -> None:
        difference = self._first_difference(stage, session, calls)
        if difference is not None:
            self._add(stage, difference)

    def _first_difference(self, stage: str, session: Session, calls: Calls) -> Difference | None:
        """The first call that differs gravely ends the comparison; what is minor waits for something worse."""
        reference, least = self._reference(calls), None
        for index, outcome in enumerate(session.run(calls)):
            if outcome.error is not None and reference.eager[index].error is None and self._is_refused(outcome):
                assert outcome.exception is not None
                self.report.refused[stage] = f"at a call: {reason(outcome.exception)}"
                if reference.has_state:
                    return least  # it has missed a call
                continue
            for difference in compare(reference, index, outcome):
                batch, grad = calls[index]
                detail = f"call {index}, batch {batch}, {'grad' if grad else 'no_grad'}: {difference.detail}"
                found = Difference(difference.kind, detail)
                if difference.kind not in MINOR:
                    return found
                least = least or found
        return least

    def _is_refused(self, outcome: Outcome) -> bool:
        return outcome.exception is not None and is_refusal(outcome.exception, self.program)

    def _add(self, stage: str, difference: Difference) -> None:
        source = self.program.source
        self.report.findings.append(
            Finding(self.program.seed, stage, difference.kind, difference.detail[:2000], source)
        )


_STEPS = {"optimize": Check._optimize, "save": Check._load, "compile": Check._compile, "onnx": Check._onnx}


def is_refusal(error: BaseException, program: Program) -> bool:
    """One of our own errors, by its kind and what it begins with: the argument's name, or that of an input."""
    subjects = "|".join([_SUBJECTS, *program.inputs])
    return isinstance(error, _OURS) and re.match(rf"({subjects})(\[\w+\])?: ", str(error)) is not None


def reason(error: BaseException) -> str:
    """The first words of a message, without what differs from model to model."""
    text = re.sub(r"\b\d+\b", "N", str(error).strip().splitlines()[0] if str(error).strip() else "no message")
    text = re.sub(r"\b(t|m|s|u|submod_)\d+\w*\b", "*", text)
    text = re.sub(r"needs .*, got .*", "needs a condition on sizes", text) if "captured graph" in text else text
    return " ".join(text.split()[:16])


def _fingerprint(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """What must stay as it is: identity, version, values, flags."""
    marks: dict[str, Any] = {}
    named = {**tensors_of(model), **{f"input {i}": v for i, v in enumerate(inputs) if isinstance(v, torch.Tensor)}}
    for name, t in named.items():
        marks[name] = (id(t), t._version, t.requires_grad, t.grad is None, t.detach().double().sum().item().hex())
    for name, layer in model.named_modules():
        plain = {k: v for k, v in vars(layer).items() if isinstance(v, bool | int | float | str)}
        marks[f"module {name}"] = (id(layer), sorted(plain.items()))
    return marks


def check(program: Program, stages: tuple[str, ...] = STAGES) -> Report:
    """Takes one program through `stages`."""
    return Check(program).run(stages)


def stages_of(seed: int, stages: tuple[str, ...]) -> tuple[str, ...]:
    """The stages of this seed in a long run: the costly ones come on a share of the seeds."""
    every = {"optimize": 1, "save": 3, "compile": 5, "onnx": 10}
    return tuple(stage for stage in stages if seed % every[stage] == 0)
