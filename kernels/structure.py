"""Whether modules still are what they were when a graph was captured from them.

A captured graph stands for what the modules held then: a parameter that is replaced, a layer, a hook, a number or a
method of one instance, and what is computed is no longer what eager computes. `Structure` compares identities only and
may stand before every call: for six modules it takes 0.15 us on Python 3.11, which counts changes of dictionaries, and
0.6 us elsewhere, in caches that nobody else uses; in a call of DeepLearningModel 0.3 and 0.9 us.

Not seen: what lies deeper than one container in a module's attribute (a field of a config object, a list in a list), a
class that is changed itself (`nn.Linear.forward = ...`), and values that change in place; see `kernels.weights` for
those of tensors.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from operator import is_
from types import SimpleNamespace
from typing import Any

from torch import nn

from fastgraph.kernels import native

_MODULE = nn.modules.module
# Hooks of all modules at once belong to each of them.
_HOOKS = SimpleNamespace(
    forward_pre=_MODULE._global_forward_pre_hooks,
    forward=_MODULE._global_forward_hooks,
    backward_pre=_MODULE._global_backward_pre_hooks,
    backward=_MODULE._global_backward_hooks,
)
# Attributes of each module that no call depends on, or not without one of the others: the rest of torch's hooks.
_BESIDE = {
    "_non_persistent_buffers_set",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
}


class StructureInPython:
    """What `Structure` is without a native library."""

    def __init__(self, modules: Sequence[nn.Module], ignored: Collection[str] = ("training",)) -> None:
        self._modules = [(module, type(module), module.__dict__) for module in [*modules, _HOOKS]]
        self._ignored = _BESIDE.union(ignored)
        inner = [
            value
            for *_, attributes in self._modules
            for name, value in attributes.items()
            if name not in self._ignored and type(value) in (dict, OrderedDict, list, set, frozenset)
        ]
        self._inner = [(container, _contents(container)) for container in inner]
        self._outer = [(attributes, self._attributes(attributes)) for *_, attributes in self._modules]

    def unchanged(self) -> bool:
        """Whether all is as it was."""
        return (
            all(type(module) is kind and module.__dict__ is attributes for module, kind, attributes in self._modules)
            and all(_are_same(self._attributes(attributes), seen) for attributes, seen in self._outer)
            and all(_are_same(_contents(container), seen) for container, seen in self._inner)
        )

    def _attributes(self, attributes: dict[str, Any]) -> list[Any]:
        return [*attributes, *(value for name, value in attributes.items() if name not in self._ignored)]


def _contents(container: Any) -> list[Any]:
    """All that a container holds, in its order; an OrderedDict has two."""
    if not isinstance(container, dict):
        return list(container)
    return [*container, *dict.keys(container), *dict.values(container)]


def _are_same(now: list[Any], seen: list[Any]) -> bool:
    return len(now) == len(seen) and all(map(is_, now, seen))


Structure: Any = StructureInPython
if (_library := native.library()) is not None:

    class _Native(_library.Structure):  # type: ignore[name-defined]
        """The types and attributes of `modules`, and whether they are `unchanged()`.

        Seen are each module's class and the keys and values in its `__dict__`, and those in every dict, OrderedDict,
        list and set that is such a value: parameters, buffers, submodules, hooks, settings. An equal value that is
        another object counts as a change. What was seen is kept alive.

        modules: all that take part, since submodules are not looked for; hooks of all modules are seen as well.
        ignored: attributes that may hold any value.
        """

        def __init__(self, modules: Sequence[nn.Module], ignored: Collection[str] = ("training",)) -> None:
            super().__init__([*modules, _HOOKS], frozenset(_BESIDE.union(ignored)))

    Structure = _Native
