"""An op is one record: its contract, its definition, its kernel and its gradient, registered with torch once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch

from fastgraph.kernels import autograd, native
from fastgraph.kernels.cuda import dispatch as cuda
from fastgraph.kernels.weights import Packed

LIBRARY = torch.library.Library("fastgraph", "FRAGMENT")

_MAX_FORMS = 4096  # forms of inputs that are remembered for one kernel

Arguments = Sequence[Any]  # all of an op's arguments but the input, in the schema's order
Size = tuple[Any, ...]


@dataclass(eq=False)
class Packing:
    """A kernel with its packed weights, and what has been found out about its inputs."""

    kernel: Any  # `run(inputs, outputs, threads)`, `packed_bytes`; None where it takes no weights of these sizes
    sizes: dict[Any, Size | None] = field(default_factory=dict)  # of results, by the input's form; None: not taken


class Running(NamedTuple):
    """What runs an op on some arguments."""

    kernel: str  # "mlp (avx2)"
    is_fused: bool  # whether it is a kernel of this package
    reason: str  # why nothing better runs it


def _takes_all(input: torch.Tensor, *arguments: Any) -> bool:
    return True


@dataclass(frozen=True, eq=False)
class Op:
    """A fused op `torch.ops.fastgraph.<name>`, of one tensor and constants to one tensor. Making it registers it.

    All functions but `constants`, `check_constants`, `pack` and `run` take (input, *arguments), as the schema has them.
    What it costs is counted over `reference`'s operators; its kernels on CUDA are `kernels/<name>/cuda.py`.
    """

    name: str
    schema: str  # "(Tensor input, Tensor[] weights, ...) -> Tensor"
    check: Callable[..., None]  # the contract, on real and on fake tensors
    check_constants: Callable[..., None]  # as much of it as the arguments behind the input decide
    output_shape: Callable[..., Size]  # of arguments that `check` takes
    reference: Callable[..., torch.Tensor]  # the definition, in ATen operators
    constants: Callable[..., tuple[list[torch.Tensor | None], Arguments]]  # tensors among the arguments; all else
    pack: Callable[..., Any]  # (tensors, *all else): the kernel on the CPU with packed weights, or None
    run: Callable[[Any, torch.Tensor, Size], torch.Tensor]  # (kernel, plain input, size of the result)
    setup_context: autograd.Keep  # as in torch.library.register_autograd
    backward: autograd.Backward  # (ctx, gradient): a gradient or None for every argument
    takes_row_strides: bool = False  # whether the kernel's `run` takes matrices with any stride between their rows
    takes: Callable[..., bool] = _takes_all  # whether the kernel has a way through inputs of this shape
    otherwise: Callable[..., torch.Tensor] | None = None  # the op on the CPU without its kernel; None: `reference`

    _by_target: ClassVar[dict[Any, "Op"]] = {}

    def __post_init__(self) -> None:
        LIBRARY.define(f"{self.name}{self.schema}")
        LIBRARY.impl(self.name, self._on_cpu, "CPU")
        LIBRARY.impl(self.name, self._by_aten, "CompositeExplicitAutograd")
        cuda.register(LIBRARY, self.name, self.check, self._by_aten)
        torch.library.register_fake(f"fastgraph::{self.name}", self._fake, lib=LIBRARY)
        autograd.register(LIBRARY, self.name, self.setup_context, self.backward, self._by_aten)
        self._by_target[self.target] = self

    @classmethod
    def of(cls, target: object) -> "Op | None":
        """The op that a node of a graph calls; None where `target` is none of them."""
        return cls._by_target.get(target)

    @classmethod
    def named(cls, name: str) -> "Op":
        """The op of this name."""
        return next(op for op in cls._by_target.values() if op.name == name)

    @cached_property
    def target(self) -> Any:
        """What a node of a graph calls."""
        return getattr(torch.ops.fastgraph, self.name).default

    @cached_property
    def _packed(self) -> Packed:
        return Packed(lambda tensors, *others: Packing(self.pack(tensors, *others)))

    def packing(self, arguments: Arguments) -> Packing | None:
        """Packed weights, from the cache while no tensor has changed; None where no kernel takes such tensors."""
        tensors, others = self.constants(*arguments)
        return self._packed.get(tensors, *others) if native.takes(*tensors) else None

    def result_size(self, packing: Packing, input: torch.Tensor, arguments: Arguments) -> Size | None:
        """Size of the result where the kernel takes inputs of this shape and dtype, else None.

        Checked once for each form of inputs; errors as those of `check`.
        """
        form = input.shape, input.dtype
        try:
            return packing.sizes[form]
        except KeyError:
            pass
        self.check(input, *arguments)
        is_taken = packing.kernel is not None and self.takes(input, *arguments)
        size = self.output_shape(input, *arguments) if is_taken else None
        if len(packing.sizes) < _MAX_FORMS:
            packing.sizes[form] = size
        return size

    def running(self, input: torch.Tensor, *arguments: Any) -> Running:
        """What runs the op on these tensors, real or fake."""
        if input.device.type == "cuda":
            kernels, reason = cuda.describe(self.name, (input, *arguments))
            return Running(f"{self.name} ({kernels})", kernels != "ATen", reason)
        weights = [tensor for tensor in self.constants(*arguments)[0] if tensor is not None]
        dtype = weights[0].dtype
        if native.takes(*weights):
            suffix = "" if dtype is torch.float32 else ", bfloat16 weights"
            return Running(f"{self.name} ({native.cpu_capability()}{suffix})", True, "")
        kind = f"{str(dtype).removeprefix('torch.')} on {weights[0].device.type}"
        no_kernels = native.cpu_capability() == "aten"
        reason = "no compiled kernels are used" if no_kernels else f"no kernel computes in {kind}"
        return Running(f"{self.name} (ATen, {kind})", False, reason)

    def _on_cpu(self, input: torch.Tensor, *arguments: Any) -> torch.Tensor:
        tensors, others = self.constants(*arguments)
        packing = self._packed.find(tensors, *others)
        if packing is None:  # else these constants have been checked before
            self.check(input, *arguments)
            packing = self.packing(arguments)
        size = None if packing is None else self.result_size(packing, input, arguments)
        if packing is None or size is None or not native.is_plain(input):
            return (self.otherwise or self.reference)(input, *arguments)
        return self.run(packing.kernel, input, size)

    def _by_aten(self, input: torch.Tensor, *arguments: Any) -> torch.Tensor:
        """On all other devices, on CUDA where the Triton kernels do not take the tensors, and under transforms."""
        self.check(input, *arguments)
        return self.reference(input, *arguments)

    def _fake(self, input: torch.Tensor, *arguments: Any) -> torch.Tensor:
        self.check(input, *arguments)
        return input.new_empty(self.output_shape(input, *arguments))
