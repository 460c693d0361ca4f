"""A call of a module as torch.export sees it, and what the module's own code does meanwhile that no graph shows."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType, MethodType, ModuleType
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fastgraph.arguments import Signature

REGISTRIES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
# Recurrent layers keep their parameters once more.
DERIVED = ("_flat_weights", "_flat_weight_refs")
_NOT_STATE = {*REGISTRIES, *DERIVED}
_DEPTH = 4  # of containers in an attribute that are looked into
_OPAQUE = (torch.Tensor, nn.Module, type, ModuleType, FunctionType, MethodType, torch.Generator)
_STRIDES = (
    torch.Tensor.stride,
    torch.Tensor.is_contiguous,
    torch.Tensor.storage_offset,
    torch.Tensor.untyped_storage,
    torch.Tensor.data_ptr,
    torch.Tensor.is_set_to,
    torch.Tensor.dim_order,
)
_GRADS = tuple(getattr(torch.Tensor, name).__get__ for name in ("requires_grad", "grad_fn", "is_leaf", "grad"))


@dataclass
class Observed:
    """What the module's own code looked at or did, beside calling operators."""

    strides: bool = False  # it looked at strides or memory of a tensor
    grads: bool = False  # it looked at whether gradients are on or wanted
    custom_gradients: list[str] = field(default_factory=list)
    assigned: dict[tuple[str, str], Any] = field(default_factory=dict)  # (module, attribute): its new value
    outputs: list[Any] = field(default_factory=list)  # flattened; TRACED in the place of what the graph computes
    out_spec: pytree.TreeSpec | None = None


class Call:
    """A call of `model`: what of its flattened arguments are tensors is free, all else among `leaves` is fixed."""

    def __init__(self, model: nn.Module, leaves: Sequence[Any], in_spec: pytree.TreeSpec, signature: Signature) -> None:
        self.model, self.in_spec, self.signature = model, in_spec, signature
        # Whether a tensor of the model was made in inference mode: then there can be no gradients.
        self.is_inference = any(t.is_inference() for t in (*model.parameters(), *model.buffers()))
        self.leaves = [leaf if self.is_inference else _without_inference(leaf) for leaf in leaves]
        self.tensors = [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]
        self.grad_mode = torch.is_grad_enabled()  # the caller's
        self.observed = Observed()  # in the last trace
        self.state: list[str] = []

    @property
    def names(self) -> list[str]:
        """A name for every leaf."""
        return self.signature.names(*pytree.tree_unflatten(self.leaves, self.in_spec))

    def run(self, tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        """The tensors (and computed sizes) among the model's flattened outputs."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.in_spec)
        with observe(self.model, self.observed), attention_is_contiguous(self.model):
            result = self.model(*args, **kwargs)
        flat, self.observed.out_spec = pytree.tree_flatten(result)
        self.observed.outputs = [TRACED if is_traced(value) else value for value in flat]
        for value in self.observed.outputs:
            if value is not TRACED and not isinstance(value, OUTPUTS):
                raise TypeError(f"it returns a {type(value).__name__}, which a graph cannot hold")
        return tuple(value for value in flat if is_traced(value))


def _without_inference(leaf: Any) -> Any:
    """An input that was made in inference mode as one that was not: gradients could not be traced with it."""
    if not isinstance(leaf, torch.Tensor) or not leaf.is_inference():
        return leaf
    with torch.inference_mode(False):
        return leaf.clone()


class FunctionOfTensors(nn.Module):
    """A call as a module: it has the model's parameters and buffers under the model's own names."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        model = call.model
        for slots in REGISTRIES:
            self.__dict__[slots] = model.__dict__[slots]
        self.__dict__.update({n: v for n, v in vars(model).items() if isinstance(v, torch.Tensor)})
        self.__dict__["_fastgraph_call"] = call

    def forward(self, *tensors: torch.Tensor) -> tuple[Any, ...]:
        """See `Call.run`."""
        result: tuple[Any, ...] = self.__dict__["_fastgraph_call"].run(tensors)
        return result


TRACED = object()
OUTPUTS = (type(None), bool, int, float, complex, str, torch.dtype, torch.device)


def is_traced(value: Any) -> bool:
    """Whether a value is computed by the graph, rather than one that it always returns."""
    return isinstance(value, torch.Tensor | torch.SymInt | torch.SymFloat | torch.SymBool)


@contextmanager
def observe(model: nn.Module, observed: Observed) -> Iterator[None]:
    """Notes in `observed` what the model does while the context is open; what it sets on itself is put back."""
    before = _attributes(model)
    with mock.patch.object(torch.autograd.Function, "apply", _spy_on_functions(observed)), _grad_mode_read(observed):
        try:
            with _Reads(observed):
                yield
        finally:
            observed.assigned = _put_back(model, before)


@contextmanager
def attention_is_contiguous(model: nn.Module) -> Iterator[None]:
    """The results of attention layers are contiguous where eager's are; torch.export writes them in other operators.

    Without gradients eager computes self-attention in one operator ("fast path" in the reference of the layer), whose
    result can be viewed in any shape. With gradients its memory is in another order, which can do less.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    hooks = [layer.register_forward_hook(_made_contiguous, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _made_contiguous(layer: nn.MultiheadAttention, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
    names = ("query", "key", "value")
    query, key, value = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names))
    own = (layer.bias_k, layer.bias_v)
    weight, bias = layer.in_proj_weight, layer.in_proj_bias
    is_fast = (
        query is key is value
        and query.dim() == 3
        and layer.batch_first
        and layer.num_heads % 2 == 0
        and not (layer.training or layer.add_zero_attn or any(t is not None for t in own))
        and torch.backends.mha.get_fastpath_enabled()
        and all(t is not None and t.dtype == query.dtype for t in (weight, bias))
    )
    return (result[0].contiguous(), *result[1:]) if is_fast else None


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """What the model sets on itself while the context is open is put back, buffers too."""
    before = _attributes(model)
    buffers = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        _put_back(model, before)
        for registry, tensors in buffers:
            registry.update(tensors)


def plain_tensors(model: nn.Module) -> list[torch.Tensor]:
    """Tensors that are attributes of the model's layers, neither parameters nor buffers."""
    return [v for module in model.modules() for v in vars(module).values() if isinstance(v, torch.Tensor)]


class _Reads(TorchFunctionMode):
    """Notes what the model's code, rather than torch's own, asks of tensors beyond sizes and dtypes."""

    def __init__(self, observed: Observed) -> None:
        super().__init__()
        self._observed = observed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _STRIDES and not _is_torch(sys._getframe(1)):
            self._observed.strides = True
        elif func in _GRADS and not _is_torch(sys._getframe(1)):
            self._observed.grads = True
        elif func is torch.Tensor.register_hook:
            self._observed.custom_gradients.append("register_hook")
        return func(*args, **(kwargs or {}))


def _is_torch(frame: Any) -> bool:
    return bool(frame.f_globals.get("__name__", "").partition(".")[0] == "torch")


@contextmanager
def _grad_mode_read(observed: Observed) -> Iterator[None]:
    original = torch.is_grad_enabled

    def is_grad_enabled() -> bool:
        observed.grads = observed.grads or not _is_torch(sys._getframe(1))
        return original()

    with mock.patch.object(torch, "is_grad_enabled", is_grad_enabled):
        yield


def _spy_on_functions(observed: Observed) -> Any:
    original = torch.autograd.Function.__dict__.get("apply", torch._C._FunctionBase.__dict__["apply"])

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls.__module__.partition(".")[0] != "torch":
            observed.custom_gradients.append(cls.__name__)
        return original.__get__(None, cls)(*args, **kwargs)

    return classmethod(apply)


def _attributes(model: nn.Module) -> dict[str, tuple[nn.Module, dict[str, Any], dict[str, Any]]]:
    """Of every module: itself, its attributes, and what each of them that can change in itself holds."""
    found = {}
    for path, module in model.named_modules():
        own = {name: value for name, value in vars(module).items() if name not in _NOT_STATE}
        contents = {name: _contents(value) for name, value in own.items()}
        found[path] = module, own, {name: inner for name, inner in contents.items() if inner}
    return found


def _contents(value: Any) -> list[tuple[Any, Any]]:
    """The lists, dictionaries, sets and objects' dictionaries in a value, each with a copy."""
    found: dict[int, tuple[Any, Any]] = {}
    pending = [(value, _DEPTH)]
    while pending:
        outer, depth = pending.pop()
        inner = outer if isinstance(outer, dict | list | set) else None
        if inner is None and not isinstance(outer, _OPAQUE):
            inner = getattr(outer, "__dict__", None)
        if isinstance(inner, dict | list | set) and depth and id(inner) not in found:
            found[id(inner)] = inner, inner.copy()
            pending += [(item, depth - 1) for item in (inner.values() if isinstance(inner, dict) else inner)]
    return list(found.values())


def _put_back(model: nn.Module, before: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Gives every module the attributes that it had; returns those that had become others."""
    changed: dict[tuple[str, str], Any] = {}
    for path, (module, own, contents) in before.items():
        now = vars(module)
        for name in [n for n in now if n not in own and n not in _NOT_STATE]:
            changed[path, name] = now.pop(name)
        for name, value in own.items():
            if name not in now or now[name] is not value:
                if name not in now or not _same(now[name], value):
                    changed[path, name] = now.get(name)
                now[name] = value
        for name, inner in contents.items():
            for container, copy in inner:
                if not _same_items(container, copy):
                    changed[path, name] = container.copy()
                    container.clear()
                    container.extend(copy) if isinstance(copy, list) else container.update(copy)
    return changed


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, bool | int | float | str) and a == b)


def _same_items(a: Any, b: Any) -> bool:
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(key in b and value is b[key] for key, value in a.items())
    if isinstance(a, set):
        return bool(a == b)
    return all(x is y for x, y in zip(a, b, strict=True))


def stand_in(value: Any) -> Any:
    """A real value in the place of one that was traced; LookupError where there is none."""
    if isinstance(value, torch.Tensor):
        size = [n if isinstance(n, int) else n.node.hint for n in value.shape]
        return torch.zeros(size, dtype=value.dtype, device=value.device)
    if isinstance(value, type(None) | bool | int | float | str) and not is_traced(value):
        return value
    raise LookupError


@contextmanager
def attributes_set(model: nn.Module, values: dict[tuple[str, str], Any]) -> Iterator[None]:
    """The model with these attributes, for as long as the context is open."""
    modules = {path: vars(model.get_submodule(path)) for path, _ in values}
    missing = object()
    before = {key: modules[key[0]].get(key[1], missing) for key in values}
    for (path, name), value in values.items():
        modules[path][name] = value
    try:
        yield
    finally:
        for (path, name), value in before.items():
            if value is missing:
                modules[path].pop(name, None)
            else:
                modules[path][name] = value
