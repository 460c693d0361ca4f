"""`save` and `load`: an optimized module as one safetensors file. No pickle, no code.

The file's tensors are the parameters, buffers and constants; its metadata hold the captured graph as JSON, the
conditions on its inputs, and a SHA-256 over all of it. Loading rewrites the graph anew for the machine that it is on.
"""

import hashlib
import json
import math
import operator
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils import _pytree as pytree

from fastgraph.capture import Captured, free_ones
from fastgraph.conditions import compile_condition
from fastgraph.cuda import check_available
from fastgraph.module import OptimizedModule

FORMAT = "fastgraph"
VERSION = 1
_PYTHON: dict[str, Callable[..., Any]] = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module, names in (
        (operator, "add sub mul floordiv truediv mod pow neg eq ne lt le gt ge and_ or_ getitem"),
        (math, "ceil floor trunc sqrt"),
        (torch, "sym_max sym_min sym_int sym_float sym_not sym_ite"),
    )
    for name in names.split()
}
_NAMES = {function: name for name, function in _PYTHON.items()}
_TORCH_VALUES = (torch.dtype, torch.layout, torch.memory_format)


def save(module: OptimizedModule, path: str | os.PathLike[str]) -> None:
    """Writes an optimized module to `path`, replacing what is there only once the new file is whole.

    Errors: TypeError where `module` was not made by `optimize` or `load`; ValueError, naming the node, for a graph with
    something that a file cannot hold (an operator that is Python code, a nested graph); OSError from the file system.
    """
    if not isinstance(module, OptimizedModule):
        raise TypeError(f"module: needs the result of fastgraph.optimize, got {type(module).__name__}")
    captured = module.captured
    tensors = _tensors(captured.graph_module)
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    program = {
        "nodes": [_encode_node(node) for node in captured.graph.nodes],
        "inputs": [_encode_input(node) for node in captured.placeholders],
        "in_spec": pytree.treespec_dumps(captured.in_spec),
        "out_spec": pytree.treespec_dumps(captured.out_spec),
        "conditions": captured.conditions,
        "tensors": {name: _encode_kind(captured.graph_module, name, first[id(t)], t) for name, t in tensors.items()},
        "dtype": None if module.dtype is None else _encode(module.dtype),
        "engine": module.engine,
        "torch": torch.__version__,
    }
    text = json.dumps(program)
    # Clones, since safetensors takes neither strides nor shared memory.
    plain = {name: tensors[name].detach().cpu().contiguous().clone() for name in first.values()}
    metadata = {"format": FORMAT, "version": str(VERSION), "program": text, "sha256": _digest(text, plain)}
    _write(Path(path), save_tensors(plain, metadata=metadata))


def load(path: str | os.PathLike[str]) -> OptimizedModule:
    """Reads what `save` wrote.

    Errors: OSError where the file cannot be read; ValueError that says whether it is truncated, damaged, of another
    version, or no fastgraph file at all.
    """
    data = Path(path).read_bytes()
    metadata = _metadata(data, path)
    if metadata["version"] != str(VERSION):
        raise ValueError(f"{path}: format version {metadata['version']}, this fastgraph reads version {VERSION}")
    try:
        tensors = load_tensors(data)
    except Exception as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    text = metadata.get("program", "")
    if _digest(text, tensors) != metadata.get("sha256"):
        raise ValueError(f"{path}: damaged: its contents do not have the checksum that they were written with")
    program = json.loads(text)
    graph_module = fx.GraphModule(_root(program["tensors"], tensors), _graph(program["nodes"]))
    _propagate(graph_module, program["inputs"])
    for condition in program["conditions"]:
        compile_condition(condition)
    in_spec, out_spec = (pytree.treespec_loads(program[name]) for name in ("in_spec", "out_spec"))
    captured = Captured(graph_module, in_spec, out_spec, program["conditions"])
    dtype = None if program["dtype"] is None else _decode(program["dtype"], {})
    return OptimizedModule(captured, dtype=dtype, engine=program["engine"])


def _metadata(data: bytes, path: Any) -> dict[str, str]:
    """The metadata of a safetensors file, without trusting any of it."""
    foreign = f"{path}: not a fastgraph file"
    if len(data) < 8:
        raise ValueError(f"{path}: truncated: {len(data)} bytes" if data else f"{path}: truncated: it is empty")
    (length,) = struct.unpack("<Q", data[:8])
    if length > 100_000_000 or (len(data) > 8 and data[8:9] != b"{"):
        raise ValueError(foreign)
    if len(data) < 8 + length:
        raise ValueError(f"{path}: truncated: {len(data)} of at least {8 + length} bytes")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged: its header cannot be read") from error
    if metadata.get("format") != FORMAT or "version" not in metadata:
        raise ValueError(f"{foreign}: a safetensors file of another program")
    if len(data) < 8 + length + end:
        raise ValueError(f"{path}: truncated: {len(data)} of {8 + length + end} bytes")
    return metadata


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _tensors(graph_module: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Parameters, buffers and plain tensor attributes by the names that the graph has for them, and all others."""
    found: dict[str, torch.Tensor] = dict(graph_module.named_parameters(remove_duplicate=False))
    found.update(graph_module.named_buffers(remove_duplicate=False))
    for node in graph_module.graph.find_nodes(op="get_attr"):
        value = operator.attrgetter(node.target)(graph_module)
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"module: {node.name} is a nested graph or object, which a file cannot hold")
        found[node.target] = value
    return found


def _encode_node(node: fx.Node) -> dict[str, Any]:
    target = node.target
    if node.op == "call_function":
        if isinstance(target, torch._ops.OpOverload):
            target = str(target)
        elif target in _NAMES:
            target = _NAMES[target]
        else:
            raise ValueError(f"module: {node.name} calls {target}, which a file cannot hold")
    try:
        args, kwargs = _encode(node.args), _encode(node.kwargs)
    except TypeError as error:
        raise ValueError(f"module: {node.name} has an argument that a file cannot hold: {error}") from error
    return {"name": node.name, "op": node.op, "target": target, "args": args, "kwargs": kwargs}


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, _TORCH_VALUES):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: _encode(item) for key, item in value.items()}}
    raise TypeError(type(value).__name__)


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "device":
        return torch.device(content)
    if kind == "torch":
        found = getattr(torch, content)
        if not isinstance(found, _TORCH_VALUES):
            raise ValueError(f"{content} is no dtype, layout or memory format")
        return found
    if kind == "tuple":
        return tuple(_decode(item, nodes) for item in content)
    return {key: _decode(item, nodes) for key, item in content.items()}


def _graph(encoded: list[dict[str, Any]]) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for item in encoded:
        target = _function(item["target"]) if item["op"] == "call_function" else item["target"]
        args, kwargs = _decode(item["args"], nodes), _decode(item["kwargs"], nodes)
        nodes[item["name"]] = graph.create_node(item["op"], target, args, kwargs, name=item["name"])
    return graph


def _function(name: str) -> Callable[..., Any]:
    if name in _PYTHON:
        return _PYTHON[name]
    try:
        namespace, op, overload = name.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), op), overload)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"operator {name} is not known here; is the library that registers it imported?") from error


def _encode_kind(root: nn.Module, name: str, first: str, tensor: torch.Tensor) -> dict[str, Any]:
    """What a tensor is to its module, and the first name that it has where it has several."""
    path, _, key = name.rpartition(".")
    owner = root.get_submodule(path)
    kind = "parameter" if key in owner._parameters else "buffer" if key in owner._buffers else "constant"
    return {"kind": kind, "same_as": first, "requires_grad": tensor.requires_grad, "device": str(tensor.device)}


def _root(descriptions: dict[str, Any], tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A module that has the tensors under their dotted names."""
    root = nn.Module()
    made: dict[str, torch.Tensor] = {}
    for target, description in descriptions.items():
        path, _, name = target.rpartition(".")
        owner = root
        for part in path.split(".") if path else []:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        kind, first = description["kind"], description["same_as"]
        if first not in made:
            check_available(torch.device(description["device"]), target)
            tensor = tensors[first].to(description["device"])
            made[first] = nn.Parameter(tensor, description["requires_grad"]) if kind == "parameter" else tensor
        if kind == "buffer":
            owner.register_buffer(name, made[first])
        else:
            setattr(owner, name, made[first])
    return root


def _encode_input(node: fx.Node) -> Any:
    """dtype, device, and for every axis [its size in the example, whether it is free]; other values as they are."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return {"value": _encode(value)}
    axes = [[int(n), False] if isinstance(n, int) or n.node.is_constant() else [n.node.hint, True] for n in value.shape]
    return {"dtype": _encode(value.dtype), "device": str(value.device), "axes": axes}


def _propagate(graph_module: fx.GraphModule, inputs: list[dict[str, Any]]) -> None:
    """Records on every node the fake tensor that the capture had recorded."""
    with free_ones():
        mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=False), allow_non_fake_inputs=True)
        fakes = [_decode(i["value"], {}) if "value" in i else _fake(mode, i) for i in inputs]
        with mode:
            FakeTensorProp(graph_module, mode).propagate_dont_convert_inputs(*fakes)
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = mode.from_tensor(operator.attrgetter(node.target)(graph_module), static_shapes=True)


def _fake(mode: FakeTensorMode, description: dict[str, Any]) -> torch.Tensor:
    axes = description["axes"]
    example = torch.empty([size for size, _ in axes], dtype=_decode(description["dtype"], {}), device="meta")
    dynamic = [DimDynamic.DYNAMIC if free else DimDynamic.STATIC for _, free in axes]
    fake = mode.from_tensor(example, symbolic_context=StatelessSymbolicContext(dynamic_sizes=dynamic))
    with mode:
        return torch.empty(fake.shape, dtype=fake.dtype, device=description["device"])
