"""`optimize` and the module that it returns."""

from collections.abc import Mapping, Sequence
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

from fastgraph import cuda
from fastgraph.call import compute
from fastgraph.capture import capture, check_example_inputs, unwrapped
from fastgraph.captured import Captured
from fastgraph.explanation import Explanation, explain
from fastgraph.kernels.cuda import choices
from fastgraph.kernels.native import cpu_capability
from fastgraph.rewrite import Rewritten
from fastgraph.selection import Specializations
from fastgraph.specialization import Specialization
from fastgraph.tracing import REGISTRIES
from fastgraph.verify import verify as verify_module

ENGINES = ("auto", "direct", "inductor", "max-autotune")


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
    _graphs: Specializations
    _fast_paths: list[Any]
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
        graphs = Specializations(model, captures, dtype=dtype, engine=engine, is_loaded=is_loaded)
        own: dict[str, Any] = dict(
            _original=model,
            _graphs=graphs,
            _fast_paths=graphs.fast_paths,
            dtype=dtype,
            asked_engine=engine,
            notes=[],
        )
        self.__dict__.update(own)
        for slots in REGISTRIES:  # both read the very dictionaries of the original, so that a change is seen
            self.__dict__[slots] = model.__dict__[slots]
        self.__dict__["training"] = model.training and not _eval_only(captures)

    @property
    def specializations(self) -> list[Specialization]:
        """The graphs, each with what runs it: one for each class of calls so far."""
        return self._graphs.all

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
        return self._graphs.captures()

    def capture_batches(self) -> None:
        """Captures what calls with a batch of 1 and of more need, for a file; see `Specializations`."""
        self._graphs.capture_batches()

    def tune(self, *args: Any, **kwargs: Any) -> None:
        """Measures the fused ops' kernels on CUDA at the sizes of these inputs, for this and later processes.

        Does nothing on the CPU, whose kernels have no choice to make.
        """
        chosen, tensors = self._graphs.select(args, kwargs)
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
            for fast_path in self._fast_paths:
                result = fast_path(*args)
                if result is not None:
                    return result
        return compute(self._graphs, args, kwargs)

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
        notes = [engine, *_notes(first, others), *self.notes]
        return explain(first.captured, first.rewritten, notes, first.planned())

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
            is_loaded=self._graphs.is_loaded,
        )
        copied.notes += self.notes
        copied.training = self.training
        return copied

    def __reduce__(self) -> Any:
        raise TypeError("OptimizedModule: cannot be pickled; use fastgraph.save(module, path) and fastgraph.load(path)")


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
