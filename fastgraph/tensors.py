"""The tensors of saved modules: which there are, under which names, and who shares memory with whom.

A tensor goes into the file as it is. Where that would lose something, the bytes that it spans do: memory that several
tensors overlap in, other strides than the usual, a dtype that safetensors lacks.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fastgraph.cuda import check_available
from fastgraph.encoding import check_name, decode, encode

_AS_THEY_ARE = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
)
_ALIGNMENT = 16  # bytes: that of the largest dtype


@dataclass
class TensorTable:
    """Named tensors. `kinds` says of each whether it is a parameter, a buffer (persistent or not) or a constant."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    def add_module(self, module: nn.Module) -> None:
        """All parameters and buffers of a module, under their own names."""
        for path, owner in module.named_modules(remove_duplicate=False):
            for slots, kind in ((owner._parameters, "parameter"), (owner._buffers, "buffer")):
                for name, tensor in slots.items():
                    if tensor is not None:
                        temporary = name in owner._non_persistent_buffers_set
                        self._add(f"{path}.{name}" if path else name, tensor, "temporary" if temporary else kind)

    def name(self, target: str, tensor: torch.Tensor) -> str:
        """The name of a tensor that a graph calls `target`; another where another graph calls another tensor so."""
        name, number = target, 0
        while name in self.tensors and self.tensors[name] is not tensor:
            number += 1
            name = f"{target}_{number}"
        if name not in self.tensors:
            self._add(name, tensor, "parameter" if isinstance(tensor, nn.Parameter) else "constant")
        return name

    def _add(self, name: str, tensor: torch.Tensor, kind: str) -> None:
        if tensor.layout is not torch.strided or tensor.is_quantized or type(tensor) not in _PLAIN_TYPES:
            what = f"{type(tensor).__name__} of layout {tensor.layout} and {tensor.dtype}"
            raise ValueError(f"module: {name} is a {what}, which a file cannot hold")
        self.tensors[name], self.kinds[name] = tensor, kind

    def encode(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(descriptions by name, contents by name)."""
        first: dict[int, str] = {}
        descriptions: dict[str, Any] = {}
        for name, tensor in self.tensors.items():
            descriptions[name] = {"kind": self.kinds[name], "same_as": first.setdefault(id(tensor), name)}
        contents: dict[str, torch.Tensor] = {}
        for group in _overlapping({name: self.tensors[name] for name in first.values()}):
            owner = next(iter(group))
            contents[owner], offsets = _contents(group)
            for name, tensor in group.items():
                descriptions[name] |= _describe(tensor, owner, None if offsets is None else offsets[name])
        return descriptions, contents


_PLAIN_TYPES = (torch.Tensor, nn.Parameter, nn.Buffer)


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The first byte of the storage that the tensor uses, and the end."""
    size = tensor.element_size()
    begin = int(tensor.storage_offset()) * size
    if tensor.numel() == 0:
        return begin, begin
    return begin, begin + size * (1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)))


def _overlapping(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Groups of tensors that have bytes in common."""

    def place(item: tuple[str, torch.Tensor]) -> tuple[int, int]:
        return item[1].untyped_storage()._cdata, _span(item[1])[0]

    groups: list[dict[str, torch.Tensor]] = []
    storage, end = None, 0
    for name, tensor in sorted(tensors.items(), key=place):
        begin, tail = _span(tensor)
        if tensor.untyped_storage()._cdata == storage and begin < end:
            groups[-1][name] = tensor
        else:
            groups.append({name: tensor})
            storage, end = tensor.untyped_storage()._cdata, 0
        end = max(end, tail)
    return groups


def _contents(group: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, int] | None]:
    """What the file gets for a group: the one tensor and None, or bytes and where in them each tensor begins."""
    tensors = list(group.values())
    if len(tensors) == 1 and tensors[0].dtype in _AS_THEY_ARE and _is_usual(tensors[0]):
        return tensors[0].detach().cpu().contiguous().clone(), None  # a clone, since safetensors takes no shared memory
    begin = min(_span(t)[0] for t in tensors) // _ALIGNMENT * _ALIGNMENT
    end = max(_span(t)[1] for t in tensors)
    storage = tensors[0].untyped_storage()
    raw = torch.empty(0, dtype=torch.uint8, device=tensors[0].device).set_(storage, begin, (end - begin,), (1,))
    padded = torch.zeros(-(-(end - begin) // _ALIGNMENT) * _ALIGNMENT, dtype=torch.uint8)
    padded[: end - begin] = raw.cpu()
    return padded, {name: _span(tensor)[0] - begin for name, tensor in group.items()}


def _is_usual(tensor: torch.Tensor) -> bool:
    flagged = tensor.is_conj() or tensor.is_neg()
    return not flagged and tensor.stride() == torch.empty(tensor.shape, device="meta").stride()


def _describe(tensor: torch.Tensor, owner: str, offset: int | None) -> dict[str, Any]:
    description = {"requires_grad": tensor.requires_grad, "device": str(tensor.device)}
    if offset is None:
        return description
    if tensor.is_conj() or tensor.is_neg():
        raise ValueError(f"module: {owner} is a lazy conjugate, which a file cannot hold; call resolve_conj() on it")
    view = {"in": owner, "dtype": encode(tensor.dtype), "offset": offset}
    return description | {"view": view | {"shape": list(tensor.shape), "stride": list(tensor.stride())}}


def build_root(descriptions: dict[str, Any], contents: dict[str, torch.Tensor]) -> nn.Module:
    """A module that has the tensors under their dotted names."""
    root = nn.Module()
    made: dict[str, torch.Tensor] = {}
    raw: dict[str, torch.Tensor] = {}
    for target, description in descriptions.items():
        check_name(target, dotted=True)
        owner, name = _owner(root, target)
        kind, first = description["kind"], description["same_as"]
        if first not in made:
            made[first] = _tensor(target, first, descriptions[first], contents, raw)
        if kind == "parameter":
            owner.register_parameter(name, made[first])  # type: ignore[arg-type]
        elif kind == "constant":
            setattr(owner, name, made[first])
        else:
            owner.register_buffer(name, made[first], persistent=kind == "buffer")
    return root


def _owner(root: nn.Module, target: str) -> tuple[nn.Module, str]:
    *path, name = target.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if hasattr(root, name):
        raise ValueError(f"{target} is there twice, or is an attribute that every module has")
    return root, name


def _tensor(
    target: str, name: str, description: dict[str, Any], contents: dict[str, torch.Tensor], raw: dict[str, torch.Tensor]
) -> torch.Tensor:
    device = torch.device(description["device"])
    check_available(device, target)
    view = description.get("view")
    if view is None:
        tensor = contents[name].to(device)
    else:
        if view["in"] not in raw:
            raw[view["in"]] = contents[view["in"]].to(device, copy=True)
        dtype = decode(view["dtype"])
        everything = raw[view["in"]]
        offset = view["offset"] // dtype.itemsize
        try:
            tensor = everything.view(dtype).as_strided(view["shape"], view["stride"], offset)
        except RuntimeError as error:
            raise ValueError(f"{name} is not within its memory: {error}") from error
    if description["kind"] == "parameter":
        return nn.Parameter(tensor, description["requires_grad"])
    return tensor.requires_grad_(description["requires_grad"])
