"""`save` and `load`: an optimized module as one safetensors file. No pickle, no code.

The file's tensors are the parameters, buffers and constants; its metadata hold the captured graphs as JSON, the
conditions on their inputs, and a SHA-256 over all of it. Beside each captured graph is what this version's rules made
of it, which is what calls run: the captured graph itself is made when somebody asks for it (`explain()`, another
`save`, `to_onnx`, `torch.compile`). A file of another version, and a graph with graphs in it, is rewritten anew.
"""

import dataclasses
import hashlib
import json
import operator
import os
import struct
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import fx, nn

from fastgraph import __version__, files
from fastgraph.arguments import CONSTANTS, Parameter, Signature
from fastgraph.captured import Captured, Outline, read_from
from fastgraph.conditions import compile_condition
from fastgraph.encoding import check_name, decode, decode_nodes, decode_tree, encode, encode_node, encode_tree
from fastgraph.kernels.native import cpu_capability
from fastgraph.kernels.weights import has_version
from fastgraph.kinds import Check, Kinds, kind_of, read_input
from fastgraph.module import OptimizedModule
from fastgraph.specialization import Specialization
from fastgraph.tensors import TensorTable, build_root

FORMAT = "fastgraph"
VERSION = 2
_NO_VALUE = {"plain": None}


def _encode_signature(signature: Signature) -> Any:
    """Names, kinds and those default values that a file can hold; one that it cannot only needs to be left out."""
    if signature.parameters is None:
        return None
    return [[p.name, p.kind, p.has_default, *_default(p)] for p in signature.parameters]


def _default(parameter: Parameter) -> list[Any]:
    try:
        return [encode(parameter.default)] if isinstance(parameter.default, CONSTANTS) else []
    except TypeError:
        return []


def _decode_signature(encoded: Any) -> Signature:
    if encoded is None:
        return Signature(None)
    parameters = []
    for name, kind, has_default, *default in encoded:
        value = decode(default[0]) if default else object()
        parameters.append(Parameter(name, kind, value) if has_default else Parameter(name, kind))
    return Signature(parameters)


# How the fields of `Captured` are written and read; all others are plain data.
_FIELDS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "in_spec": (encode_tree, decode_tree),
    "out_spec": (encode_tree, decode_tree),
    "signature": (_encode_signature, _decode_signature),
}


def save(module: OptimizedModule, path: str | os.PathLike[str]) -> None:
    """Writes an optimized module to `path`, replacing what is there only once the new file is whole.

    Errors: TypeError where `module` was not made by `optimize` or `load`; ValueError, naming the node, for a graph with
    something that a file cannot hold (an operator that is Python code, a tensor that is no plain one); OSError from the
    file system.
    """
    if not isinstance(module, OptimizedModule):
        raise TypeError(f"module: needs the result of fastgraph.optimize, got {type(module).__name__}")
    table = TensorTable()
    if module.captured.state:
        what = ", ".join(module.captured.state)
        raise ValueError(f"module: forward keeps {what} from call to call, which a file cannot hold")
    module.capture_batches()
    table.add_module(module)
    programs = [
        _encode_captured(each.captured, table) | _encode_rewritten(each, table) for each in module.specializations
    ]
    descriptions, contents = table.encode()
    saved = {
        "programs": programs,
        "tensors": descriptions,
        "dtype": encode(module.dtype),
        "engine": module.asked_engine,
        "torch": torch.__version__,
    }
    text = json.dumps(saved, allow_nan=False)
    metadata = {"format": FORMAT, "version": str(VERSION), "program": text, "sha256": _digest(text, contents)}
    files.write(Path(path), save_tensors(contents, metadata=metadata))


def load(path: str | os.PathLike[str]) -> OptimizedModule:
    """Reads what `save` wrote.

    Errors: OSError where the file cannot be read; ValueError that says whether it is truncated, damaged, of another
    version, or no fastgraph file at all, or what it needs that is not here.
    """
    data = Path(path).read_bytes()
    metadata = _metadata(data, path)
    if metadata["version"] != str(VERSION):
        raise ValueError(f"{path}: format version {metadata['version']}, this fastgraph reads version {VERSION}")
    try:
        contents = load_tensors(data)
    except Exception as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    text = metadata.get("program", "")
    if _digest(text, contents) != metadata.get("sha256"):
        raise ValueError(f"{path}: damaged: its contents do not have the checksum that they were written with")
    try:
        saved = json.loads(text)
        root = build_root(saved["tensors"], contents)
        captures = [_decode_captured(program, root) for program in saved["programs"]]
        dtype, engine = decode(saved["dtype"]), saved["engine"]
    except (KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise ValueError(f"{path}: damaged: {type(error).__name__}: {error}") from error
    if not captures:
        raise ValueError(f"{path}: damaged: it has no graph")
    return OptimizedModule(root, captures, dtype=dtype, engine=engine, is_loaded=True)


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


def _encode_captured(captured: Captured, table: TensorTable) -> dict[str, Any]:
    """A captured graph; its tensors are added to `table`."""
    from fastgraph.values import Recorder  # it and Rebuilder import what takes longest: see `kinds`

    recorder = Recorder()
    encoded: dict[str, Any] = {"graph": _encode_graph(captured.graph_module, table, recorder)}
    for field in dataclasses.fields(captured):
        if field.name != "graph_module" and field.metadata.get("saved", True):
            write, _ = _FIELDS.get(field.name, (encode, decode))
            try:
                encoded[field.name] = write(getattr(captured, field.name))
            except TypeError as error:
                raise ValueError(f"module: {field.name} has a part that a file cannot hold: {error}") from error
    return encoded | {"symbols": recorder.symbols}


def _rules() -> str:
    """What a rewriting depends on, beside the graph: a file may be loaded elsewhere."""
    return f"{__version__}, {'compiled kernels' if cpu_capability() != 'aten' else 'ATen'}"


def _encode_rewritten(specialization: Specialization, table: TensorTable) -> dict[str, Any]:
    """What calls run, where that is flat and its tensors have versions: else it is rewritten when it is loaded."""
    rewritten = {"without_gradients": specialization.rewritten}
    if specialization.has_regions:
        rewritten["with_gradients"] = specialization.rewritten_with_gradients
    encoded = {name: _encode_flat(each.graph_module, table) for name, each in rewritten.items()}
    return {} if None in encoded.values() else {"rewritten": {"rules": _rules(), **encoded}}


def _encode_flat(graph_module: fx.GraphModule, table: TensorTable) -> list[dict[str, Any]] | None:
    """Nodes with the kinds of their values; None where there are graphs in the graph, or tensors without versions."""
    targets, storages = dict[str, str](), dict[int, int]()
    for node in graph_module.graph.find_nodes(op="get_attr"):
        tensor = operator.attrgetter(node.target)(graph_module)
        if not isinstance(tensor, torch.Tensor) or not has_version(tensor):
            return None
        targets[node.target] = table.name(node.target, tensor)
    return [encode_node(n, targets) | {"kind": kind_of(n.meta.get("val"), storages)} for n in graph_module.graph.nodes]


def _decode_captured(encoded: dict[str, Any], root: nn.Module) -> Captured:
    """The captured graph, over the tensors of `root`; only its outline where that is enough for calls."""
    others: dict[str, Any] = {}
    for field in dataclasses.fields(Captured):
        if field.name in encoded:
            _, read = _FIELDS.get(field.name, (encode, decode))
            others[field.name] = read(encoded[field.name])
    outline = _decode_outline(encoded, root)

    def make() -> fx.GraphModule:
        from fastgraph.values import Rebuilder

        return read_from(root, _decode_graph(encoded["graph"], root, Rebuilder(encoded["symbols"])))

    captured = Captured(make() if outline is None else make, **others, outline=outline)  # type: ignore[arg-type]
    for condition in captured.conditions:
        compile_condition(condition)
    return captured


def _decode_outline(encoded: dict[str, Any], root: nn.Module) -> Outline | None:
    """None where the graph has to be rewritten anew: by the rules here, or since tensors have no versions."""
    rewritten, graph = encoded.get("rewritten", {}), encoded["graph"]
    if graph["graphs"] or rewritten.get("rules") != _rules() or torch.is_inference_mode_enabled():
        return None
    check = Check(encoded["symbols"])
    for item in graph["nodes"]:
        check.value(item.get("value", _NO_VALUE))
    inputs = [read_input(item["target"], item["value"]) for item in graph["nodes"] if item["op"] == "placeholder"]
    nodes = list(_decode_nodes(graph["nodes"], root).nodes)
    with_gradients = _decode_flat(rewritten["with_gradients"], root) if "with_gradients" in rewritten else None
    return Outline(inputs, nodes, _decode_flat(rewritten["without_gradients"], root), with_gradients)


def _decode_flat(encoded: list[dict[str, Any]], root: nn.Module) -> fx.Graph:
    graph, kinds = _decode_nodes(encoded, root), Kinds()
    for node, item in zip(graph.nodes, encoded, strict=True):
        node.meta["val"] = kinds.value(item["kind"])
    return graph


def _encode_graph(graph_module: fx.GraphModule, table: TensorTable, recorder: Any) -> dict[str, Any]:
    """Nodes with their values; graphs within the graph (branches of a torch.cond) by the names that it has for them."""
    targets: dict[str, str] = {}
    graphs: dict[str, Any] = {}
    for node in graph_module.graph.find_nodes(op="get_attr"):
        target, value = node.target, operator.attrgetter(node.target)(graph_module)
        if isinstance(value, torch.Tensor):
            targets[target] = table.name(target, value)
        elif isinstance(value, fx.GraphModule):
            targets[target] = target
            graphs[target] = _encode_graph(value, table, recorder)
        else:
            raise ValueError(f"module: {node.name} is a {type(value).__name__}, which a file cannot hold")
    nodes = []
    for node in graph_module.graph.nodes:
        encoded = encode_node(node, targets)
        try:
            value = recorder.value(node.meta.get("val"))
        except TypeError as error:
            raise ValueError(f"module: {node.name} is {error}, which a file cannot hold") from error
        nodes.append(encoded if value == _NO_VALUE else encoded | {"value": value})
    return {"nodes": nodes, "graphs": graphs}


def _decode_graph(encoded: dict[str, Any], root: nn.Module, values: Any) -> fx.GraphModule:
    graphs = {target: _decode_graph(inner, root, values) for target, inner in encoded["graphs"].items()}
    graph = _decode_nodes(encoded["nodes"], root, graphs)
    for node, item in zip(graph.nodes, encoded["nodes"], strict=True):
        node.meta["val"] = values.value(item.get("value", _NO_VALUE))
    return fx.GraphModule(_with_graphs(root, graphs), graph)


def _decode_nodes(encoded: list[dict[str, Any]], root: nn.Module, graphs: Collection[str] = ()) -> fx.Graph:
    """The graph of these nodes, whose attributes are tensors of `root`, or `graphs`."""
    graph = decode_nodes(encoded)
    for node in graph.find_nodes(op="get_attr"):
        if node.target not in graphs and not isinstance(operator.attrgetter(node.target)(root), torch.Tensor):
            raise ValueError(f"{node.name}: {node.target} is no tensor")
    return graph


def _with_graphs(root: nn.Module, graphs: dict[str, fx.GraphModule]) -> nn.Module:
    """A module with all that `root` has, and graphs that are this one program's alone."""
    if not graphs:
        return root
    both = nn.Module()
    both.__dict__.update(vars(root))
    for slots in ("_parameters", "_buffers", "_modules"):
        both.__dict__[slots] = dict(vars(root)[slots])
    for name, graph in graphs.items():
        check_name(name)
        both.add_module(name, graph)  # KeyError where it is another's name
    return both
