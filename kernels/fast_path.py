"""The fast path: a call of one kernel on one tensor in one step from Python into native code and back.

`kernels/runtime/guard.cpp` is its other half: it looks whether the input is of a form that was admitted, whether
somebody observes the operators or wants gradients, and whether parameters and modules are what they were; then it runs
the kernel. In all other cases it returns None, and the caller goes the general way, which also raises the errors. A
guard only looks, for callers who then run several operators.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from fastgraph.kernels import native
from fastgraph.kernels.weights import Snapshot


def _is_about_devices() -> bool:
    """Torch's stack of function modes holds nothing but the default device: a captured graph names its own."""
    return all(type(mode) is DeviceContext for mode in _get_current_function_mode_stack())


# Each answers truly where somebody observes or replaces the operators; where there is a second function, it then says
# whether that may be passed by.
OBSERVERS: list[tuple[Callable[[], Any], Callable[[], bool] | None]] = [
    (torch._C._len_torch_dispatch_stack, None),
    (torch._C._len_torch_function_stack, _is_about_devices),
    (torch._C._functorch.peek_interpreter_stack, None),
    (torch._C._get_tracing_state, None),
    (torch._C._is_any_autocast_enabled, None),
]

_module = native.kernels()
IS_SUPPORTED = _module is not None and _module.FastPath.is_supported()


def is_unobserved() -> bool:
    """Nobody observes or replaces the operators.

    No dispatch mode, no function mode but that of a default device, no functorch, no level of forward-mode derivatives
    (inputs may carry tangents), no tracing, no autocast.
    """
    if forward_ad._current_level >= 0:
        return False
    return not any(observes() and not (harmless and harmless()) for observes, harmless in OBSERVERS)


def fast_path(
    kernel: Any,
    slots: Sequence[tuple[dict[str, Any], str]] = (),
    snapshot: Snapshot | None = None,
    structure: Any = None,
) -> Any:
    """The fast path to a `kernel` with packed weights, closed as soon as what `slots` hold is not what `snapshot` saw.

    kernel: as of a `kernels.bound.Bound`. None where there can be no fast path: without a kernel, with parameters that
    have no version, and where torch does not let native code look at tensors.
    Without a snapshot the caller sees to it that the weights are fresh and that nobody observes the operators.
    structure: a `kernels.structure.Structure`; the path is closed while it is changed too.
    Call it with the input after `admit([input], [size])`, which lets in all of the same dtype and shape.
    """
    if not IS_SUPPORTED or kernel is None or (snapshot is not None and snapshot.seen is None):
        return None
    assert _module is not None
    observers, watched = ([], []) if snapshot is None else (OBSERVERS, _watched(slots, snapshot))
    return _module.FastPath(observers, watched, kernel, structure)


def guard(
    slots: Sequence[tuple[dict[str, Any], str]], snapshot: Snapshot, structure: Any = None, *, strides: bool = False
) -> Any:
    """`guard(*inputs)`: whether all is as it was in a call with inputs like these, after `guard.admit(*inputs)`.

    True for plain CPU tensors of admitted dtypes and shapes, while nobody observes the operators, no gradient is
    wanted, and what `slots` hold is what `snapshot` saw. None where there can be no guard.
    structure: a `kernels.structure.Structure`; False while it is changed too.
    strides: whether inputs of other strides than those admitted are others.
    """
    if not IS_SUPPORTED or snapshot.seen is None:
        return None
    assert _module is not None
    return _module.Guard(OBSERVERS, _watched(slots, snapshot), structure, strides)


def _watched(slots: Sequence[tuple[dict[str, Any], str]], snapshot: Snapshot) -> list[tuple[Any, ...]]:
    return [(*slot, *seen) for slot, seen in zip(slots, snapshot.seen or (), strict=True)]
