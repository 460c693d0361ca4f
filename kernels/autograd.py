"""Autograd for ops whose arguments include lists with None among the tensors.

`torch.library.register_autograd` takes such a list for one opaque argument and drops the gradients of its tensors
(torch/_library/autograd.py, `not_list_of_tensor`), so the arguments are flattened here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree


def _is_leaf(value: Any) -> bool:
    """Everything but lists of tensors and Nones."""
    return (
        not isinstance(value, list | tuple) or any(isinstance(item, int | float | str) for item in value) or not value
    )


def register(
    library: torch.library.Library,
    name: str,
    setup_context: Callable[[Any, tuple[Any, ...], torch.Tensor], None],
    backward: Callable[[Any, torch.Tensor], tuple[Any, ...]],
) -> None:
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

    def flat_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        flat: list[Any] = []
        for value in backward(ctx, grad):
            flat.extend(value) if isinstance(value, list) else flat.append(value)
        return None, *flat

    methods: dict[str, Callable[..., Any]] = {"forward": forward, "setup_context": keep, "backward": flat_backward}
    # The class is named after the op, since results show it: grad_fn=<MlpBackward>.
    namespace = {method: staticmethod(body) for method, body in methods.items()}
    function: Any = type(name.title().replace("_", ""), (torch.autograd.Function,), namespace)

    def kernel(*arguments: Any) -> torch.Tensor:
        flat, spec = pytree.tree_flatten(arguments, is_leaf=lambda v: v is not arguments and _is_leaf(v))
        wanted = torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in flat)
        if not wanted:
            with torch._C._AutoDispatchBelowAutograd():
                return op(*arguments)
        return function.apply(spec, *flat)

    library.impl(name, kernel, "Autograd")
