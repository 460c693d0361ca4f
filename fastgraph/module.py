"""`optimize` and the module that it returns."""

import threading
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
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

from fastgraph import cuda, precision
from fastgraph.capture import Captured, capture, check_inputs, flatten_inputs
from fastgraph.direct import Direct, State
from fastgraph.explanation import Explanation, explain
from fastgraph.kernels.cuda import choices
from fastgraph.kernels.door import is_quiet
from fastgraph.kernels.native import cpu_capability
from fastgraph.rewrite import rewrite
from fastgraph.verify import verify as verify_module

ENGINES = ("auto", "direct", "inductor", "max-autotune")
_ACCEPTED = 4096  # input shapes remembered as checked


def optimize(
    model: nn.Module,
    example_inputs: Sequence[Any],
    *,
    dtype: torch.dtype | None = None,
    engine: str = "auto",
    verify: bool = True,
) -> "OptimizedModule":
    """Returns a module that computes what `model` computes, faster.

    model: any module that torch.export takes, in eval mode where it has dropout or batch-norm. It is not changed; the
        result shares its parameters, so training either is seen by both.
    example_inputs: the model's arguments, as a tuple. Sizes that the model leaves free stay free, a batch of 1 too;
        where the model broadcasts along an axis of size 1, all that are 1 in the example are fixed.
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
    captured = capture(model, example_inputs)
    optimized = OptimizedModule(captured, dtype=dtype, engine=engine)
    if engine == "max-autotune":
        optimized.tune(example_inputs)
    if verify:
        optimized.notes.append(verify_module(optimized, captured, tuple(example_inputs), dtype))
    return optimized


class OptimizedModule(nn.Module):
    """A captured and rewritten module; made by `optimize` and `load`.

    It has the original's parameters and buffers under their own names. Call it as the original. `explain()` tells what
    became of every operator.
    """

    def __init__(self, captured: Captured, *, dtype: torch.dtype | None, engine: str) -> None:
        super().__init__()
        self.captured, self.rewritten = captured, rewrite(captured.graph_module)
        self.dtype = dtype
        if dtype is not None:
            precision.cast(self.rewritten.graph_module, dtype)
        self.engine = _engine(captured) if engine == "auto" else engine
        self.notes: list[str] = []
        self._share(captured.graph_module, self.rewritten.graph_module)
        if self._eval_only():
            super().train(False)
        self._state: State | None = None
        self._door: Any = None  # that of the state: one look-up less in each call
        self._lock = threading.Lock()
        self._accepted: set[Any] = set()
        direct = self.engine == "direct" and captured.plain_arguments is not None
        self._direct = Direct(self, self.rewritten.graph, out_spec=captured.out_spec if direct else None)
        self._on_cuda = cuda.is_on_cuda(node.meta.get("val") for node in captured.placeholders)
        self._compiled = None if self.engine == "direct" else self._compile()

    def _share(self, captured: nn.Module, rewritten: nn.Module) -> None:
        """Both graphs read parameters from the dictionaries of this very module, so that a replaced one is seen."""
        for slots in ("_parameters", "_buffers", "_modules"):
            self.__dict__[slots] = rewritten.__dict__[slots] = captured.__dict__[slots]
        for name, plain in vars(captured).items():
            if isinstance(plain, torch.Tensor):  # a tensor that is neither parameter nor buffer
                self.__dict__[name] = plain

    def _compile(self) -> Callable[..., Sequence[Any]]:
        if self._on_cuda:
            return cuda.compiled(self, self.rewritten.graph_module, self.engine)
        mode = "max-autotune" if self.engine == "max-autotune" else None
        return torch.compile(self.rewritten.graph_module, dynamic=True, mode=mode)

    def tune(self, example_inputs: Sequence[Any]) -> None:
        """Measures the fused ops' kernels on CUDA at the sizes of `example_inputs`, for this and later processes.

        Does nothing on the CPU, whose kernels have no choice to make.
        """
        if self._on_cuda:
            flat = flatten_inputs(self.captured, tuple(example_inputs), {})
            with torch.no_grad():
                cuda.Tuner(self.rewritten.graph_module).run(*flat)
            self._compiled = self._compile()

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
        if not is_compiling() and not kwargs and self._door is not None:
            result = self._door(*args)
            if result is not None:
                return result
        return self._general(args, kwargs)

    def _general(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        flat = flatten_inputs(self.captured, args, kwargs)
        if is_compiling():
            results = self.rewritten.graph_module(*flat)
        else:
            self._check(flat)
            results = self._run(flat)
        return pytree.tree_unflatten(list(results), self.captured.out_spec)

    def _run(self, flat: list[Any]) -> Sequence[Any]:
        tensors = [t for t in flat if isinstance(t, torch.Tensor)]
        quiet = is_quiet()
        if not quiet and any(_is_autocast(device) for device in {t.device.type for t in tensors}):
            return self.captured.graph_module(*flat)  # autocast decides operator by operator, and knows eager's
        if self._compiled is not None and not (self._on_cuda and self._wants_grad(*tensors)):
            return self._compiled(*flat)
        if not quiet or any(type(t) is not torch.Tensor for t in tensors):
            return self.rewritten.graph_module(*flat)
        if self._wants_grad(*tensors):
            if not self._direct.is_differentiable:
                return self.rewritten.graph_module(*flat)
            return self._direct.run_with_gradients(self._fresh_state(), *flat)
        if not torch.is_grad_enabled():
            return self._run_direct(flat)
        with torch.no_grad():
            return self._run_direct(flat)

    def _run_direct(self, flat: list[Any]) -> Sequence[Any]:
        state = self._fresh_state()
        results = self._direct.run(state, *flat)
        state.admit(*flat)
        return results

    def _check(self, flat: list[Any]) -> None:
        """Checks inputs once for every combination of shapes."""
        if len(flat) == 1 and isinstance(flat[0], torch.Tensor):
            key: Any = flat[0].shape
        else:
            key = tuple(t.shape if isinstance(t, torch.Tensor) else (type(t), t) for t in flat)
        if key in self._accepted:
            return
        check_inputs(self.captured, flat)
        if len(self._accepted) >= _ACCEPTED:
            self._accepted.clear()
        self._accepted.add(key)

    def _fresh_state(self) -> State:
        """Packed weights and other constants for the parameters as they are now."""
        state = self._state
        if state is None or not state.snapshot.matches(self._direct.tensors()):
            with self._lock:
                self._state = state = self._direct.state()
                self._door = state.door
        return state

    def _wants_grad(self, *inputs: torch.Tensor) -> bool:
        if not torch.is_grad_enabled():
            return False
        return any(t.requires_grad for t in inputs) or any(p.requires_grad for p in self._direct.tensors())

    def train(self, mode: bool = True) -> "OptimizedModule":
        """Gradients flow in any mode; a model with dropout or batch-norm stays captured in eval mode.

        RuntimeError for train(True) on such a model: capture knows no training behaviour of these layers.
        """
        if mode and (layers := self._eval_only()):
            raise RuntimeError(f"train: {', '.join(layers)} is captured in eval mode; train the original model instead")
        return super().train(mode)

    def _eval_only(self) -> list[str]:
        """Layers that were captured in eval mode and behave otherwise in training."""
        names = ("dropout", "batch_norm")
        nodes = self.captured.graph.nodes
        return [n.name for n in nodes if n.op == "call_function" and any(name in str(n.target) for name in names)]

    def explain(self) -> Explanation:
        """What became of each operator of the original: fused into what, run by which kernel, or why not."""
        if self._on_cuda:
            mode = f" (torch.compile, mode {cuda.MODES[self.engine]})" if self.engine in cuda.MODES else ""
            engine = f"engine: {self.engine}{mode}; measured choices: {choices.path()}"
        else:
            engine = f"engine: {self.engine}; CPU kernels: {cpu_capability()}"
        return explain(self.captured, self.rewritten, [engine, *self.notes])

    def __deepcopy__(self, memo: dict[int, Any]) -> "OptimizedModule":
        """A copy with parameters of its own."""
        captured = replace(self.captured, graph_module=deepcopy(self.captured.graph_module, memo))
        copied = OptimizedModule(captured, dtype=self.dtype, engine=self.engine)
        copied.notes = list(self.notes)
        return copied.train(self.training)

    def __reduce__(self) -> Any:
        raise TypeError("OptimizedModule: cannot be pickled; use fastgraph.save(module, path) and fastgraph.load(path)")


def _engine(captured: Captured) -> str:
    """What "auto" is. Inductor's kernels for CUDA are Triton's: direct where there can be none."""
    values = [node.meta.get("val") for node in captured.placeholders]
    return "inductor" if cuda.is_on_cuda(values) and cuda.why_no_triton(values) is None else "direct"


def _is_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
