"""One captured graph with what runs it: a module has one for each class of calls that it was called with."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import fx, nn

from fastgraph import cuda, precision
from fastgraph.capture import free_ones
from fastgraph.captured import Captured, read_from, rebind
from fastgraph.lazy import Later
from fastgraph.program import Program, State
from fastgraph.regions import is_switch, without_switches
from fastgraph.rewrite import Rewritten, rewrite


class Specialization:
    """`captured`, a graph of `model`, rewritten, and what runs it for inputs that it holds for; see `fastgraph.call`.

    engine: "direct", "inductor" or "max-autotune", as in `optimize`; dtype: what it computes in, None for the model's.
    """

    def __init__(
        self, model: nn.Module, captured: Captured, *, dtype: torch.dtype | None, engine: str, structure: Any = None
    ) -> None:
        self._model, self.captured, self._dtype = model, captured, dtype
        self.on_cuda = any(input.device.type == "cuda" for input in captured.inputs)
        self.engine = self._auto() if engine == "auto" else engine
        # Its native guard knows nothing of strides, and of gradients only whether they are wanted.
        direct = self.engine == "direct" and captured.plain_arguments is not None
        guarded = direct and captured.strides is None and captured.grads is None and not captured.state
        self._rewritten = Later(partial(_rewrite, captured, dtype))
        outline = captured.outline
        if outline is None:  # else its rewriting runs, and `rewritten` is for who asks
            self.rewritten = _rewrite(captured, dtype)
        self._program = Program(
            captured.graph_module if outline is None else model,
            self.rewritten.graph if outline is None else outline.rewritten,
            out_spec=captured.out_spec if guarded else None,
            structure=structure,
        )
        self._state: State | None = None
        self.fast_path: Any = None  # for calls like those that it admitted
        self.compiled = None if self.engine == "direct" else self._compile()

    @cached_property
    def rewritten(self) -> Rewritten:
        """What runs in calls without gradients."""
        return self._rewritten.get()

    def planned(self) -> dict[str, str]:
        """Names of `rewritten`'s nodes that native plans compute, with the kernels' names."""
        return self._program.planned() if self.engine == "direct" and not self.on_cuda else {}

    def ready(self) -> None:
        """Sees to it that `rewritten` is made. A trace of torch.compile calls it as it is, and does not look inside."""
        self.rewritten  # noqa: B018

    # What `torch.compiler.assume_constant_result` does, without its import of torch._dynamo.
    ready._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @cached_property
    def rewritten_with_gradients(self) -> Rewritten:
        """What runs where gradients are wanted: regions without gradients stay what they are."""
        if not self.has_regions:
            return self.rewritten
        return Later(partial(_rewrite, self.captured, self._dtype, switches=True)).get()

    @cached_property
    def program_with_gradients(self) -> Program:
        """The program for calls that want gradients."""
        if not self.has_regions:
            return self._program
        outline = self.captured.outline
        if outline is not None and outline.with_gradients is not None:
            return Program(self._model, outline.with_gradients)
        return Program(self.captured.graph_module, self.rewritten_with_gradients.graph)

    @cached_property
    def has_regions(self) -> bool:
        """Whether gradients are off or on in some of the graph, whatever the caller's mode."""
        return any(map(is_switch, self.captured.nodes))

    @cached_property
    def never_wants_grad(self) -> bool:
        """Whether all of forward is in a region without gradients."""
        enabled, anything = True, False
        for node in self.captured.nodes:
            if is_switch(node):
                enabled = bool(node.args[0])
            elif node.op == "call_function":
                anything = True
                if enabled:
                    return False
        results = self.captured.nodes[-1].all_input_nodes
        return anything and all(node.op == "call_function" for node in results)

    def _auto(self) -> str:
        """What the engine "auto" is. Inductor's kernels for CUDA are Triton's: direct where there can be none."""
        values = [node.meta.get("val") for node in self.captured.placeholders] if self.on_cuda else []
        return "inductor" if self.on_cuda and cuda.why_no_triton(values) is None else "direct"

    def follow(self, structure: Any) -> None:
        """Takes the model's tensors as they are now; nothing else of it has changed. `structure`: its new one."""
        graphs = [self.__dict__.get("rewritten"), self.__dict__.get("rewritten_with_gradients")]
        for graph in [None if self.captured.is_outline else self.captured, *graphs]:
            if graph is not None:
                rebind(graph.graph_module, self._model, self.captured.attributes)
        for program in (self._program, self.__dict__.get("program_with_gradients")):
            if program is not None:
                program.follow(structure)
        self._state = self.fast_path = None

    def _compile(self) -> Callable[..., Sequence[Any]]:
        if self.on_cuda:
            return cuda.compiled(self.captured.graph_module, self.rewritten.graph_module, self.engine)
        mode = "max-autotune" if self.engine == "max-autotune" else None
        return torch.compile(self.rewritten.graph_module, dynamic=True, mode=mode)

    def tune(self, tensors: Sequence[torch.Tensor]) -> None:
        """Measures the fused ops' kernels on CUDA at these sizes, for this and later processes.

        Does nothing on the CPU, whose kernels have no choice to make.
        """
        if self.on_cuda:
            with torch.no_grad():
                cuda.Tuner(self.rewritten.graph_module).run(*tensors)
            self.compiled = self._compile()

    def wants_grad(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether a result of these inputs has to carry gradients."""
        if not torch.is_grad_enabled() or self.never_wants_grad:
            return False
        return any(t.requires_grad for values in (tensors, self._program.all_tensors()) for t in values)

    def run_program(self, tensors: Sequence[torch.Tensor]) -> Sequence[Any]:
        """The flattened results, with gradients off; lets calls like this one take the fast path from now on."""
        state = self._program.fresh_state()
        if state is not self._state:
            path = state.fast_path
            self._state, self.fast_path = state, _without_gradients(path) if self.never_wants_grad else path
        results = self._program.run(state, *tensors)
        state.admit(*tensors)
        return results


def _without_gradients(fast_path: Any) -> Any:
    """The fast path of a module whose forward is without gradients, whatever the caller's mode."""
    if fast_path is None:
        return None

    def call(*arguments: Any) -> Any:
        with torch.no_grad():
            return fast_path(*arguments)

    return call


def _rewrite(captured: Captured, dtype: torch.dtype | None, *, switches: bool = False) -> Rewritten:
    """`switches`: whether those between regions with and without gradients stay."""
    graph_module = captured.graph_module
    if not switches:
        graph_module = fx.GraphModule(graph_module, _copy(captured.graph))
        without_switches(graph_module.graph)
    with free_ones():  # what rules compute of sizes is not to fix any
        rewritten = rewrite(graph_module, dtype=dtype)
        if dtype is not None:
            precision.cast(rewritten.graph_module, dtype)
    read_from(captured.graph_module, rewritten.graph_module)
    return rewritten


def _copy(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    copied.output(copied.graph_copy(graph, mapping))
    copied.output_node().meta = dict(graph.output_node().meta)
    for old, new in mapping.items():
        new.meta = dict(old.meta)
    return copied
