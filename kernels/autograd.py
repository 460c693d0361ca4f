"""Autograd for ops whose arguments include lists with None among the tensors.

`torch.library.register_autograd` takes such a list for one opaque argument and drops the gradients of its tensors
(torch/_library/autograd.py, `not_list_of_tensor`), so the arguments are flattened here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree


def _is_leaf(value: Any) -> bool:
    """Everything but lists of tensors and Nones."""
    return (
        not isinstance(value, list | tuple) or any(isinstance(item, int | float | str) for item in value) or not value
    )


def _flatten(arguments: tuple[Any, ...]) -> tuple[list[Any], Any]:
    return pytree.tree_flatten(arguments, is_leaf=lambda v: v is not arguments and _is_leaf(v))


Keep = Callable[[Any, tuple[Any, ...], torch.Tensor | None], None]
Backward = Callable[[Any, torch.Tensor], tuple[Any, ...]]


def _function(name: str, backward: Backward, before: int, **methods: Callable[..., Any]) -> Any:
    """An autograd.Function named after the op, since results show it: grad_fn=<MlpBackward>.

    It is applied to the op's flattened arguments, behind `before` others.
    """

    def flat_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        flat: list[Any] = [None] * before
        for value in backward(ctx, grad):
            flat.extend(value) if isinstance(value, list) else flat.append(value)
        return tuple(flat)

    namespace = {method: staticmethod(body) for method, body in {**methods, "backward": flat_backward}.items()}
    return type(name.title().replace("_", ""), (torch.autograd.Function,), namespace)


def register(library: torch.library.Library, name: str, setup_context: Keep, backward: Backward) -> None:
    """Registers `backward(ctx, grad)`, which returns a gradient or None in the place of every argument of the op.

    `setup_context(ctx, arguments, output)` keeps on `ctx` what backward needs, as in torch.library.register_autograd.
    """
    op = getattr(torch.ops.fastgraph, name).default

    def forward(spec: Any, *flat: Any) -> torch.Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*pytree.tree_unflatten(flat, spec))

    def keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        spec, *flat = inputs
        setup_context(ctx, pytree.tree_unflatten(flat, spec), output)

    function = _function(name, backward, 1, forward=forward, setup_context=keep)

    def kernel(*arguments: Any) -> torch.Tensor:
        flat, spec = _flatten(arguments)
        wanted = torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in flat)
        if not wanted:
            with torch._C._AutoDispatchBelowAutograd():
                return op(*arguments)
        return function.apply(spec, *flat)

    library.impl(name, kernel, "Autograd")


def with_gradients(
    name: str, call: Callable[[torch.Tensor], torch.Tensor], arguments: Sequence[Any], keep: Keep, backward: Backward
) -> Callable[[torch.Tensor], torch.Tensor]:
    """`call(input)`, the op `name` with all its other `arguments` fixed, with gradients for input and arguments.

    What `register` does for the op in a tenth of the time, since nothing is looked at or taken apart in a call.
    """
    fixed = tuple(arguments)
    flat, _ = _flatten(fixed)

    def forward(ctx: Any, input: torch.Tensor, *_: Any) -> torch.Tensor:
        keep(ctx, (input, *fixed), None)
        return call(input)

    function = _function(name, backward, 0, forward=forward)
    return lambda input: function.apply(input, *flat)
