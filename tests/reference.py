"""The tests' one way to compare numbers: against float64, with eager's own error as the measure."""

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fastgraph.verify import error, tolerance


def assert_close_to_reference(
    actual: torch.Tensor, eager: torch.Tensor, reference: torch.Tensor, sums: float = 0.0
) -> None:
    """At most twice eager's error against float64 plus a few ulp of the largest value, or of `sums`, the largest sum of
    absolute terms; NaN and infinities in place."""
    assert actual.dtype == eager.dtype
    assert actual.shape == eager.shape
    found, allowed = error(actual, reference), tolerance(eager, reference, sums)
    assert found <= allowed, f"error {found:.3g} against float64, allowed {allowed:.3g}"


def double(value: Any) -> Any:
    """Floating tensors in float64, in any structure."""
    convert = lambda t: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t  # noqa: E731
    return pytree.tree_map(convert, value)


def check_op(op: Callable[..., torch.Tensor], reference: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    """Runs the op, and its reference in the tensors' own dtype and in float64; compares; returns the op's result."""
    actual = op(*arguments)
    with LastProduct() as last:
        exact = reference(*double(arguments))
    assert_close_to_reference(actual, reference(*arguments), exact, last.sums)
    return actual


class LastProduct(TorchFunctionMode):
    """Looks at the last product that is computed while it is open: `sums` is its largest |b| + sum |a_k w_k|."""

    def __init__(self) -> None:
        super().__init__()
        self.sums = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls `func`, a product once more on absolute values."""
        if func in (F.linear, F.conv2d):
            sums = func(*pytree.tree_map_only(torch.Tensor, torch.abs, args), **(kwargs or {}))
            finite = sums[sums.isfinite()]
            self.sums = finite.max().item() if finite.numel() else 0.0
        return func(*args, **(kwargs or {}))


def check_gradients(
    op: Callable[..., torch.Tensor], reference: Callable[..., torch.Tensor], arguments: Sequence[Any]
) -> None:
    """Compares the gradients of every floating tensor among the arguments, as `check_op` does results."""

    def gradients(function: Callable[..., torch.Tensor], values: Any) -> tuple[torch.Tensor, ...]:
        values = pytree.tree_map(lambda t: t.detach().requires_grad_() if isinstance(t, torch.Tensor) else t, values)
        tensors = [t for t in pytree.tree_leaves(values) if isinstance(t, torch.Tensor)]
        return torch.autograd.grad(function(*values).square().sum(), tensors)

    ours, eager = gradients(op, arguments), gradients(reference, arguments)
    for actual, own, exact in zip(ours, eager, gradients(reference, double(arguments)), strict=True):
        assert_close_to_reference(actual, own, exact)
        assert exact.abs().max() > 0


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Runs work(0) ... work(count - 1) at once, each in a Python thread of its own, and waits for all."""
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def random(generator: torch.Generator, shape: Sequence[int], scale: float = 1.0) -> torch.Tensor:
    """Normally distributed fp32 tensor."""
    return torch.randn(tuple(shape), generator=generator) * scale


def layers(generator: torch.Generator, sizes: Sequence[int], bias: bool = True) -> tuple[list[Any], list[Any]]:
    """Weights and biases of a chain, scaled so that values keep their size from layer to layer."""
    weights = [random(generator, (o, i), (2 / max(i, 1)) ** 0.5) for i, o in pairwise(sizes)]
    return weights, [random(generator, (o,)) if bias else None for o in sizes[1:]]


def scaled(model: nn.Module, gain: float = 3.0) -> nn.Module:
    """Larger weights than the default initialisation, whose outputs hardly depend on the input."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(gain)
    return model.eval()
