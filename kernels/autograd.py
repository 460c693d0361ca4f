"""Autograd for ops whose arguments include lists with None among the tensors.

`torch.library.register_autograd` takes such a list for one opaque argument and drops the gradients of its tensors
(torch/_library/autograd.py, `not_list_of_tensor`), so the arguments are flattened here.

The backward formulas know neither tangents nor the wrapped tensors of torch.func: there an op is its reference formula,
of ATen operators that know both.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

_LEAF = -1

Keep = Callable[[Any, tuple[Any, ...], torch.Tensor | None], None]
Backward = Callable[[Any, torch.Tensor], tuple[Any, ...]]
Formula = Callable[..., torch.Tensor]


def flatten(arguments: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """The arguments with every list of tensors and Nones opened; the lengths of these lists, `_LEAF` for all else."""
    flat: list[Any] = []
    lengths = []
    for value in arguments:
        if isinstance(value, list | tuple) and value and not isinstance(value[0], int | float | str):
            flat += value
            lengths.append(len(value))
        else:
            flat.append(value)
            lengths.append(_LEAF)
    return flat, lengths


def unflatten(flat: Sequence[Any], lengths: Sequence[int]) -> tuple[Any, ...]:
    """The arguments again."""
    arguments: list[Any] = []
    at = 0
    for length in lengths:
        arguments.append(flat[at] if length == _LEAF else list(flat[at : at + length]))
        at += 1 if length == _LEAF else length
    return tuple(arguments)


def function(name: str, backward: Backward, before: int, forward: Callable[..., torch.Tensor]) -> Any:
    """An autograd.Function named after the op, since results show it: grad_fn=<MlpBackward>.

    It is applied to the op's flattened arguments, behind `before` others. `forward` has the ctx and keeps on it itself:
    a `setup_context` costs 20 us, in which torch binds the arguments to a signature.
    """

    def flat_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        flat: list[Any] = [None] * before
        for value in backward(ctx, grad):
            flat.extend(value) if isinstance(value, list) else flat.append(value)
        return tuple(flat)

    namespace = {"forward": staticmethod(forward), "backward": staticmethod(flat_backward)}
    return type(name.title().replace("_", ""), (torch.autograd.Function,), namespace)


def is_transformed() -> bool:
    """Whether operators are transformed by torch.func, or tensors may carry tangents."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def register(
    library: torch.library.Library, name: str, setup_context: Keep, backward: Backward, formula: Formula
) -> None:
    """Registers `backward(ctx, grad)`, which returns a gradient or None in the place of every argument of the op.

    `setup_context(ctx, arguments, output)` keeps on `ctx` what backward needs, as in torch.library.register_autograd.
    `formula` is the op in ATen operators, for forward-mode derivatives and the transforms of torch.func.
    """
    op = getattr(torch.ops.fastgraph, name).default

    def below(*arguments: Any) -> torch.Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            result: torch.Tensor = op(*arguments)
            return result

    def forward(ctx: Any, arguments: tuple[Any, ...], *_: Any) -> torch.Tensor:
        setup_context(ctx, arguments, None)
        return below(*arguments)

    differentiable = function(name, backward, 1, forward)

    def kernel(*arguments: Any) -> torch.Tensor:
        if is_transformed():
            return formula(*arguments)
        flat, _ = flatten(arguments)
        wanted = torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in flat)
        result: torch.Tensor = differentiable.apply(arguments, *flat) if wanted else below(*arguments)
        return result

    library.impl(name, kernel, "Autograd")
    library.impl(name, formula, "FuncTorchBatched")
