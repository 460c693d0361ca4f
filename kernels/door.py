"""The direct door: a call of one fused op on one tensor in one step from Python into native code and back.

`kernels/runtime/guard.cpp` is its other half: it looks whether the input is of a form that was admitted, whether
somebody watches or wants gradients, and whether parameters and modules are what they were; then it runs the kernel. In all other
cases it returns None, and the caller goes the general way, which also raises the errors. A gate only looks, for callers
who then run several operators.
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


# Each answers truly where somebody watches or replaces the operators, unless its excuse, asked then, does so too.
WATCHERS: list[tuple[Callable[[], Any], Callable[[], bool] | None]] = [
    (torch._C._len_torch_dispatch_stack, None),
    (torch._C._len_torch_function_stack, _is_about_devices),
    (torch._C._functorch.peek_interpreter_stack, None),
    (torch._C._get_tracing_state, None),
    (torch._C._is_any_autocast_enabled, None),
]

_module = native.kernels()
IS_SUPPORTED = _module is not None and _module.FastPath.is_supported()


def is_quiet() -> bool:
    """Nobody watches or replaces the operators.

    No dispatch mode, no function mode but that of a default device, no functorch, no level of forward-mode derivatives
    (inputs may carry tangents), no tracing, no autocast.
    """
    if forward_ad._current_level >= 0:
        return False
    return not any(watches() and not (excuse and excuse()) for watches, excuse in WATCHERS)


def open_door(
    kernel: Any,
    slots: Sequence[tuple[dict[str, Any], str]] = (),
    snapshot: Snapshot | None = None,
    structure: Any = None,
) -> Any:
    """The door to a `kernel` with packed weights, shut as soon as what `slots` hold is no longer what `snapshot` saw.

    kernel: as of a `kernels.bound.Bound`. None where there can be no door: without a kernel, with parameters that have
    no version, and where torch does not let native code look at tensors.
    Without a snapshot the caller sees to it that the weights are fresh and that nobody watches.
    structure: a `kernels.structure.Structure`; the door is shut while it is changed too.
    Call the door with the input after `door.admit([input], [size])`, which lets in all of the same dtype and shape.
    """
    if not IS_SUPPORTED or kernel is None or (snapshot is not None and snapshot.seen is None):
        return None
    assert _module is not None
    watchers, watched = ([], []) if snapshot is None else (WATCHERS, _watched(slots, snapshot))
    return _module.FastPath(watchers, watched, kernel, structure)


def open_gate(
    slots: Sequence[tuple[dict[str, Any], str]], snapshot: Snapshot, structure: Any = None, *, strides: bool = False
) -> Any:
    """`gate(*inputs)`: whether all is as it was in a call with inputs like these, which `gate.admit(*inputs)` let in.

    True for plain CPU tensors of admitted dtypes and shapes, while nobody watches, no gradient is wanted, and what
    `slots` hold is what `snapshot` saw. None where there can be no gate.
    structure: a `kernels.structure.Structure`; the gate is shut while it is changed too.
    strides: whether inputs of other strides than those admitted are others, and do not pass.
    """
    if not IS_SUPPORTED or snapshot.seen is None:
        return None
    assert _module is not None
    return _module.Guard(WATCHERS, _watched(slots, snapshot), structure, strides)


def _watched(slots: Sequence[tuple[dict[str, Any], str]], snapshot: Snapshot) -> list[tuple[Any, ...]]:
    return [(*slot, *seen) for slot, seen in zip(slots, snapshot.seen or (), strict=True)]
