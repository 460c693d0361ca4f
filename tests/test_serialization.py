"""save and load: whole files come back, all others are refused with what is wrong."""

import dataclasses
import hashlib
import json
import os
import struct
import subprocess
import sys
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

import fastgraph
from fastgraph import encoding
from fastgraph.captured import Captured
from fastgraph.constants import constant_nodes
from fastgraph.models import DeepLearningModel, Net
from fastgraph.serialization import _decode_captured, _encode_captured
from fastgraph.tensors import TensorTable, build_root
from tests.reference import random
from tests.saved_models import MODELS, Apply, Pair, Point, Tensors, make
from tests.test_capture import Flexible
from tests.test_rewrite_simplify import randomised


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model.fastgraph"
    fastgraph.save(fastgraph.optimize(DeepLearningModel().eval(), (torch.zeros(1, 784),)), path)
    return path


def shared_and_plain() -> nn.Module:
    """Tied weights, a batch-norm, a tensor that is no parameter, a frozen parameter."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 5, 3), randomised(nn.BatchNorm2d(5))
            self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
            self.second.weight = self.first.weight
            self.shift = torch.arange(5.0)
            self.first.bias.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.conv(x)).mean((2, 3))
            return self.second(torch.relu(self.first(x))) + self.shift * x.shape[0]

    return Model()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (DeepLearningModel(), (1, 784)),
        (Net(), (1, 3, 720, 480)),
        (shared_and_plain(), (2, 3, 9, 9)),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Flatten(1), nn.LazyLinear(3)), (2, 3, 5, 5)),
    ],
    ids=["deep", "net", "shared", "flatten"],
)
def test_round_trip(model: nn.Module, shape: tuple[int, ...], tmp_path: Path, generator: torch.Generator) -> None:
    x = random(generator, shape)
    model(x)  # a lazy layer gets its size
    fast = fastgraph.optimize(model.eval(), (x,))
    path = tmp_path / "model.fastgraph"
    fastgraph.save(fast, path)
    loaded = fastgraph.load(path)
    with torch.no_grad():
        for batch in (x, torch.cat([x, x, x])):
            assert torch.equal(loaded(batch), fast(batch))
    assert [(n, p.requires_grad) for n, p in loaded.named_parameters()] == [
        (n, p.requires_grad) for n, p in fast.named_parameters()
    ]
    assert list(loaded.state_dict()) == list(fast.state_dict())
    assert [r.becomes for r in loaded.explain()] == [r.becomes for r in fast.explain()]
    assert [r.shape for r in loaded.explain()] == [r.shape for r in fast.explain()]
    with pytest.raises(RuntimeError, match="dimensions"):
        loaded(x[0])
    fastgraph.save(loaded, path)
    with torch.no_grad():
        assert torch.equal(fastgraph.load(path)(x), fast(x))


def metadata(path: Path) -> Any:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])["__metadata__"]


def number(value: Any) -> Any:
    """A size as text or number, whether it is symbolic or was found to be fixed."""
    if not isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return value
    expression, ranges = value.node.expr, value.node.shape_env.var_to_range
    if expression.is_Integer:
        return int(expression)
    return str(expression), [str(ranges[symbol]) for symbol in sorted(expression.free_symbols, key=str)]


def facts(graph_module: torch.fx.GraphModule, storages: dict[int, int]) -> list[Any]:
    """All that is recorded about all nodes, with a number for each piece of memory."""

    def describe(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            memory = storages.setdefault(value.untyped_storage()._cdata, len(storages))
            sizes = [number(n) for n in (*value.shape, *value.stride(), value.storage_offset())]
            return value.dtype, value.device, value.requires_grad, sizes, memory
        return number(value)

    rows: list[Any] = []
    for node in graph_module.graph.nodes:
        value = node.meta.get("val")
        known = pytree.tree_map(describe, value)
        rows.append((node.name, node.op, str(node.target), str(node.args), str(node.kwargs), str(known)))
        inner = getattr(graph_module, node.target, None) if node.op == "get_attr" else None
        if isinstance(inner, torch.fx.GraphModule):
            rows += facts(inner, storages)
    return rows


def kinds_of(graph: torch.fx.Graph) -> list[Any]:
    """For every node the dtypes of its tensors, with a number for each piece of memory; None where it has no value."""
    numbers: dict[int, int] = {}

    def describe(value: Any) -> Any:
        own = [t for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]
        return [(t.dtype, numbers.setdefault(t.untyped_storage()._cdata, len(numbers))) for t in own]

    values = [node.meta.get("val") for node in graph.nodes]
    return [None if value is None else describe(value) for value in values]


def bits(value: Any) -> Any:
    """What makes two results the same: type, dtype, strides and every bit."""
    if not isinstance(value, torch.Tensor):
        return type(value), value
    raw = value.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)
    return value.dtype, value.shape, value.stride(), raw.numpy().tobytes()


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")  # torch.export, of recurrent layers
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model(name: str, tmp_path: Path) -> None:
    model, inputs = make(name)
    fast = fastgraph.optimize(model, inputs, verify=False)
    path, again = tmp_path / "model", tmp_path / "again"
    fastgraph.save(fast, path)
    loaded = fastgraph.load(path)
    with torch.no_grad():
        expected, actual = pytree.tree_flatten(fast(*inputs)), pytree.tree_flatten(loaded(*inputs))
    assert [bits(v) for v in actual[0]] == [bits(v) for v in expected[0]]
    assert actual[1] == expected[1]
    assert facts(loaded.captured.graph_module, {}) == facts(fast.captured.graph_module, {})
    assert loaded.captured.conditions == fast.captured.conditions
    assert loaded.rewritten.refusals == fast.rewritten.refusals
    assert loaded.rewritten.graph_module.code == fast.rewritten.graph_module.code
    if (outline := loaded.captured.outline) is not None:  # what runs knows who shares memory, and what is constant
        ours, theirs = outline.rewritten, loaded.rewritten.graph
        assert kinds_of(ours) == kinds_of(theirs)
        assert {n.name for n in constant_nodes(ours)} == {n.name for n in constant_nodes(theirs)}
        assert [str(n.args) for n in ours.nodes] == [str(n.args) for n in theirs.nodes]
    assert list(loaded.explain()) == list(fast.explain())
    states = [{key: bits(t) for key, t in module.state_dict().items()} for module in (loaded, fast)]
    assert states[0] == states[1]
    fastgraph.save(loaded, again)
    assert metadata(again)["program"] == metadata(path)["program"]
    assert metadata(again)["sha256"] == metadata(path)["sha256"]


def test_gradients_after_loading(tmp_path: Path) -> None:
    for name in ("regions", "cond", "encoder", "unet"):
        model, inputs = make(name)
        fast = fastgraph.optimize(model, inputs, verify=False)
        fastgraph.save(fast, tmp_path / "model")
        loaded = fastgraph.load(tmp_path / "model")
        for module in (fast, loaded):
            module.zero_grad()
            module(*inputs).square().sum().backward()
        pairs = zip(fast.named_parameters(), loaded.named_parameters(), strict=True)
        assert all(a == b and torch.equal(p.grad, q.grad) for (a, p), (b, q) in pairs), name


def test_the_structure_of_results(tmp_path: Path) -> None:
    def loaded(name: str) -> Any:
        model, inputs = make(name)
        fastgraph.save(fastgraph.optimize(model, inputs, verify=False), tmp_path / "model")
        return fastgraph.load(tmp_path / "model")(*inputs)

    result = loaded("structures")
    assert type(result) is OrderedDict
    assert type(result["a"]).__name__ == "Point"
    assert result["a"]._fields == ("x", "y")
    assert isinstance(result["a"].y, list)
    assert (type(result["b"]), result["b"].default_factory, list(result["b"])) == (defaultdict, list, [3, "k"])
    assert (type(result["c"]), result["c"].maxlen) == (deque, 4)
    assert type(loaded("topk")) is torch.return_types.topk
    assert type(loaded("sort and median")[1]["m"]) is torch.return_types.median
    assert type(loaded("dataclass")) is Pair


def test_a_namedtuple_is_any_of_its_name_and_fields() -> None:
    spec = encoding.decode_tree(encoding.encode_tree(pytree.tree_structure(Point(1, (2,)))))
    assert spec == pytree.tree_structure(Point(3, (4,)))
    assert pytree.tree_structure(Point(3, (4,))) == spec
    for name, fields in (("Point", "x z"), ("Other", "x y")):
        other = namedtuple(name, fields)  # type: ignore[misc]
        assert spec != pytree.tree_structure(other(1, (2,)))
    assert type(pytree.tree_unflatten([1, 2], spec)) is not Point


def test_a_type_that_is_not_registered_here() -> None:
    encoded = encoding.encode_tree(pytree.tree_structure(Pair(torch.ones(1), torch.ones(1))))
    encoded["registered"][0] = "elsewhere.Pair"
    with pytest.raises(ValueError, match=r"type elsewhere.Pair is not known here; import the module"):
        encoding.decode_tree(encoded)


def test_tensors_share_memory_as_before(tmp_path: Path) -> None:
    model = Tensors().eval()
    x = torch.ones(2, 4)
    fastgraph.save(fastgraph.optimize(model, (x,), verify=False), tmp_path / "model")
    loaded = fastgraph.load(tmp_path / "model")
    assert loaded.transposed is loaded.tied
    assert loaded.expanded.stride() == (0, 1)
    assert not loaded.expanded.requires_grad
    loaded.buffer[1] = 7.0
    assert loaded.view[0] == 7.0
    model.buffer[1] = 7.0
    with torch.no_grad():
        assert torch.equal(loaded(x)[1], fastgraph.optimize(model, (x,), verify=False)(x)[1])


def test_a_root_has_the_state_of_the_module() -> None:
    """Unused parameters too, and buffers that are not part of the state as such."""
    model = Tensors()
    table = TensorTable()
    table.add_module(model)
    root = build_root(*table.encode())
    ours, theirs = root.state_dict(), model.state_dict()
    assert {key: bits(t) for key, t in ours.items()} == {key: bits(t) for key, t in theirs.items()}
    assert "temporary" not in ours
    assert torch.equal(root.get_buffer("temporary"), model.temporary)
    names = [(name, p.requires_grad) for name, p in model.named_parameters(remove_duplicate=False)]
    assert sorted(names) == sorted((n, p.requires_grad) for n, p in root.named_parameters(remove_duplicate=False))


def test_what_tensors_cannot_be_saved() -> None:
    class Other(torch.Tensor):
        pass

    tensors = {
        "Tensor of layout torch.sparse_coo": torch.ones(2, 2).to_sparse(),
        "Other of layout torch.strided": torch.ones(2).as_subclass(Other),
        "lazy conjugate": torch.ones(2, dtype=torch.complex64).conj(),
    }
    for text, tensor in tensors.items():
        table = TensorTable()
        with pytest.raises(ValueError, match=f"module: shift is a {text}.* which a file cannot hold"):
            table.encode() if table.name("shift", tensor) else None


def test_several_captures_share_one_set_of_tensors() -> None:
    """Two graphs of one module, each with a constant of its own that both call by one name."""
    layer = nn.Linear(4, 4)
    first = fastgraph.optimize(Apply(lambda x, f: f(x) + torch.tensor([1.0]), layer), (torch.ones(2, 4),)).captured
    second = fastgraph.optimize(Apply(lambda x, f: f(x) * torch.tensor([2.0]), layer), (torch.ones(2, 4),)).captured
    table = TensorTable()
    programs = [_encode_captured(captured, table) for captured in (first, second)]
    root = build_root(*table.encode())
    decoded = [_decode_captured(json.loads(json.dumps(program)), root) for program in programs]
    x = torch.randn(3, 4)
    for captured, original in zip(decoded, (first, second), strict=True):
        assert torch.equal(captured.graph_module(x)[0], original.graph_module(x)[0])
    weights = [c.graph_module.get_parameter("layers.0.weight") for c in decoded]
    assert weights[0] is weights[1]


@dataclasses.dataclass
class Richer(Captured):
    """A captured graph with further fields."""

    places: dict[int, Any] = dataclasses.field(default_factory=dict)
    layouts: Any = None


def test_further_fields_of_a_captured_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fastgraph.optimize(nn.Linear(2, 2), (torch.ones(1, 2),)).captured
    places = {0: float("nan"), 3: slice(1, None), 4: torch.bfloat16, 5: 1 - 2j, 6: b"bytes", 7: ..., 8: True, 9: 1}
    captured = Richer(plain.graph_module, plain.in_spec, plain.out_spec, [], places=places, layouts=[(2, 1), None])
    table = TensorTable()
    program = json.loads(json.dumps(_encode_captured(captured, table), allow_nan=False))
    monkeypatch.setattr("fastgraph.serialization.Captured", Richer)
    decoded: Any = _decode_captured(program, build_root(*table.encode()))
    assert repr(decoded.places) == repr(places)
    assert decoded.layouts == [(2, 1), None]


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 2**80, 2.5, "text", b"\x00\xff", ..., 1 - 2j, complex("inf"), float("-inf"), range(1, 9, 2)),
        *((1, [2, (3,)]), {"a": 1, 2: None}, slice(None, 3), torch.Size([2, 3]), torch.device("cuda:1")),
        *(torch.bfloat16, torch.strided, torch.channels_last, torch.per_tensor_affine, torch.ops.aten.relu.default),
    ],
    ids=repr,
)
def test_every_kind_of_argument(value: Any) -> None:
    decoded = encoding.decode(json.loads(json.dumps(encoding.encode(value), allow_nan=False)))
    assert type(decoded) is type(value)
    assert decoded == value


def test_every_function_of_symbolic_sizes_has_a_name() -> None:
    from torch.fx.experimental.sym_node import METHOD_TO_OPERATOR

    for method, function in METHOD_TO_OPERATOR.items():
        if method != "is_integer":  # a lambda, which no graph can call
            assert encoding.function(encoding.function_name(function)) is function


def test_structures_conditions_dtype_and_training(tmp_path: Path, generator: torch.Generator) -> None:
    path = tmp_path / "model.fastgraph"
    fastgraph.save(fastgraph.optimize(Flexible(), (torch.ones(2, 3), (torch.ones(2, 3), 4))), path)
    loaded = fastgraph.load(path)
    assert loaded(torch.ones(5, 3), (torch.ones(5, 3), 4))["sum"].tolist() == [[5.0] * 3] * 5
    with pytest.raises(RuntimeError, match="needs the value of the example, 4, got 5"):
        loaded(torch.ones(2, 3), (torch.ones(2, 3), 5))

    fast = fastgraph.optimize(DeepLearningModel().eval(), (torch.zeros(2, 784),), dtype=torch.bfloat16)
    fastgraph.save(fast, path)
    loaded = fastgraph.load(path)
    x = random(generator, (3, 784))
    with torch.no_grad():
        assert torch.equal(loaded(x), fast(x))
    with pytest.raises(RuntimeError, match=r"needs x.shape\[1\] == 784"):
        loaded(torch.ones(2, 783))
    optimizer = torch.optim.SGD(loaded.parameters(), lr=1.0)
    loaded(x)[:, 0].sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(loaded(x), fast(x))


def test_no_pickle_in_the_file(saved: Path) -> None:
    assert metadata(saved)["format"] == "fastgraph"
    (program,) = json.loads(metadata(saved)["program"])["programs"]
    assert next(n["target"] for n in program["graph"]["nodes"] if n["op"] == "call_function") == "aten.linear.default"


@pytest.mark.parametrize("size", [0, 3, 8, 100, 5000, -1])
def test_truncated(size: int, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"short: truncated: "):
        fastgraph.load(path)


@pytest.mark.parametrize("position", [12, 3000, 20000, -5])
def test_damaged(position: int, saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[position] ^= 0x10
    path = tmp_path / "broken"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="broken: (damaged: |truncated: |not a fastgraph file)"):
        fastgraph.load(path)


def test_a_flipped_bit_in_a_weight_is_damage(saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-1000] ^= 1
    path = tmp_path / "broken"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="broken: damaged: its contents do not have the checksum"):
        fastgraph.load(path)


def test_foreign_files(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    for data in (b"PK\x03\x04" + b"x" * 100, b"\x80\x04" + b"x" * 100, b"hello, this is a text file\n"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="foreign: not a fastgraph file"):
            fastgraph.load(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="foreign: not a fastgraph file: a safetensors file of another program"):
        fastgraph.load(path)
    with pytest.raises(FileNotFoundError):
        fastgraph.load(tmp_path / "nothing")


def test_another_version(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "future"
    for version in (b"1", b"9"):
        path.write_bytes(saved.read_bytes().replace(b'"version":"2"', b'"version":"' + version + b'"'))
        text = f"future: format version {version.decode()}, this fastgraph reads version 2"
        with pytest.raises(ValueError, match=text):
            fastgraph.load(path)


def edited(path: Path, target: Path, change: Callable[[Any], None]) -> None:
    """Writes the file anew with another program, and the checksum that belongs to it."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    program = json.loads(header["__metadata__"]["program"])
    change(program)
    header["__metadata__"]["program"] = json.dumps(program)
    digest = hashlib.sha256(header["__metadata__"]["program"].encode())
    tensors = {key: entry for key, entry in header.items() if key != "__metadata__"}
    dtypes = {"F32": torch.float32, "U8": torch.uint8}
    for key in sorted(tensors):
        begin, end = tensors[key]["data_offsets"]
        digest.update(f"{key} {dtypes[tensors[key]['dtype']]} {tensors[key]['shape']}".encode())
        digest.update(data[8 + length + begin : 8 + length + end])
    header["__metadata__"]["sha256"] = digest.hexdigest()
    text = json.dumps(header).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def nodes(program: Any) -> Any:
    return program["programs"][0]["graph"]["nodes"]


def fused(program: Any) -> Any:
    return program["programs"][0]["rewritten"]["without_gradients"]


def call(program: Any) -> Any:
    return next(n for n in nodes(program) if n["op"] == "call_function")


def rename(program: Any, old: str, new: str) -> None:
    """Everywhere in the graphs."""
    program["programs"] = json.loads(json.dumps(program["programs"]).replace(json.dumps(old), json.dumps(new)))


def attribute(program: Any) -> Any:
    return next(n for n in nodes(program) if n["op"] == "get_attr")


CODE = "x): __import__('os').abort()  #"
VIEW = {"in": "layer1.weight", "dtype": {"torch": "float32"}, "offset": 0, "shape": [512, 784], "stride": [784, 1]}
QUOTED = 'layer1.a"+__import__("os").abort()+"'
EDITS: dict[str, Callable[[Any], Any]] = {
    "a placeholder": lambda p: nodes(p)[-1].update(op="placeholder", target=CODE),
    "a node's name": lambda p: rename(p, call(p)["name"], CODE),
    "a keyword": lambda p: rename(p, call(p)["name"], "import"),
    "a kind of node": lambda p: call(p).update(op="call_method", target="abort"),
    "a function of Python": lambda p: call(p).update(target="load_library.__self__.import_module"),
    "an operator's attribute": lambda p: call(p).update(target="aten.linear.default.__init__"),
    "an operator that reads files": lambda p: call(p).update(target="aten.from_file.default"),
    "an attribute": lambda p: (
        p["tensors"].update({QUOTED: p["tensors"].pop("layer1.weight") | {"same_as": QUOTED, "view": VIEW}}),
        rename(p, "layer1.weight", QUOTED),
    ),
    "an attribute that is not there": lambda p: attribute(p).update(target="layer1.nothing"),
    "an attribute that is no tensor": lambda p: attribute(p).update(target="layer1.__class__"),
    "a graph's name": lambda p: p["programs"][0]["graph"]["graphs"].update(
        {QUOTED: json.loads(json.dumps(p["programs"][0]["graph"]))}
    ),
    "a dtype": lambda p: call(p)["args"].update(tuple=[{"torch": "hub"}]),
    "a condition": lambda p: p["programs"][0].update(conditions=["__import__('os').abort()"]),
    "a namedtuple": lambda p: p["programs"][0].update(out_spec={"namedtuple": [CODE, ["a"], ["*"]]}),
    "a factory": lambda p: p["programs"][0].update(out_spec={"defaultdict": ["eval", ["a"], ["*"]]}),
    "a type": lambda p: p["programs"][0].update(out_spec={"registered": ["os.system", None, ["*"]]}),
    "a size": lambda p: nodes(p)[-2]["value"]["tensor"].update(shape=[["__import__", 1], 10]),
    "a tensor's name": lambda p: p["tensors"].update({"__class__": next(iter(p["tensors"].values()))}),
    "a tensor's memory": lambda p: next(iter(p["tensors"].values())).update(
        view={"in": "layer1.bias", "dtype": {"torch": "float32"}, "offset": 0, "shape": [9000], "stride": [1]}
    ),
    "a missing part": lambda p: p.pop("tensors"),
    "a number for text": lambda p: call(p).update(name=3),
    "no programs": lambda p: p.update(programs=[]),
    "a rewritten node's name": lambda p: fused(p)[-2].update(name=CODE),
    "a rewritten node's function": lambda p: fused(p)[-2].update(target="load_library.__self__.import_module"),
    "a rewritten node's attribute": lambda p: fused(p)[1].update(op="get_attr", target="layer1.__class__"),
    "a kind": lambda p: fused(p)[-2].update(kind={"dtype": "hub", "storage": 0}),
    "a rewritten graph": lambda p: p["programs"][0]["rewritten"].pop("without_gradients"),
}


@pytest.mark.parametrize("what", EDITS)
def test_no_text_in_a_file_is_run(what: str, saved: Path, tmp_path: Path) -> None:
    edited(saved, tmp_path / "same", lambda program: None)
    fastgraph.load(tmp_path / "same")
    edited(saved, tmp_path / "edited", EDITS[what])
    with pytest.raises(ValueError):  # noqa: PT011
        fastgraph.load(tmp_path / "edited")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "aten.relu",
            "aten.nothing.default",
            "nothing.relu.default",
            "load_library.__self__.import_module",
            "higher_order",
        ),
        *(
            "aten.relu.default.__call__",
            "aten.relu.default._op",
            "higher_order.nothing",
            "os.system",
            "operator.call",
            "",
        ),
    ],
)
def test_only_operators_are_functions(name: str) -> None:
    with pytest.raises(ValueError, match=f"operator {name} is not known here"):
        encoding.function(name)


def test_a_file_has_the_usual_permissions(saved: Path, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        fastgraph.save(fastgraph.load(saved), tmp_path / "ours")
    finally:
        os.umask(old)
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="module: needs the result of fastgraph.optimize, got Linear"):
        fastgraph.save(nn.Linear(2, 2), tmp_path / "x")

    refused: dict[str, Callable[[torch.Tensor], Any]] = {
        "lifted_custom_0 is a Generator": lambda x: x + torch.randn(4, generator=torch.Generator()),
        "out_spec has a part that a file cannot hold: defaultdict of ": lambda x: defaultdict(lambda: 0, a=x + 1),
    }
    for text, function in refused.items():
        fast = fastgraph.optimize(Apply(function), (torch.ones(2, 4),), verify=False)
        with pytest.raises(ValueError, match=f"module: {text}"):
            fastgraph.save(fast, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")
    monkeypatch.setattr("fastgraph.files.os.replace", lambda *a: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        fastgraph.save(fastgraph.load(saved), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


class PartlyFrozen(nn.Module):
    """A convolution without gradients before a layer with gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), randomised(nn.BatchNorm2d(8)), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.backbone(x).mean((2, 3))
        return torch.relu(self.head(x))


SERVED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "deep": (DeepLearningModel, (2, 784), None),
    "bfloat16": (DeepLearningModel, (2, 784), torch.bfloat16),
    "net": (Net, (1, 3, 720, 480), None),
    "regions": (PartlyFrozen, (2, 3, 9, 9), None),
    "norm": (lambda: PartlyFrozen().backbone, (2, 3, 9, 9), None),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8), None),
    "lstm": (lambda: nn.LSTM(4, 8, batch_first=True), (2, 5, 4), None),
    "shared": (shared_and_plain, (2, 3, 9, 9), None),
}
# Their import takes longer than all that `load` has to do. torch imports parts of torch.export itself.
SLOW = ("torch._dynamo", "torch._inductor", "torch.export", "torch._export", "sympy", "triton", "torch._functorch")
SERVE = f"""
import sys, torch
from torch.utils._pytree import tree_leaves
before = set(sys.modules)
import fastgraph
for path in sys.argv[1:]:
    fast, x = fastgraph.load(path), torch.load(path + ".input")
    with torch.no_grad():
        expected = tree_leaves(fast(x))
    assert all(map(torch.allclose, tree_leaves(fast(x)), expected)), path
    fast.train().state_dict() if path.endswith("deep") else None
    try:
        fast(x[0, 0])
    except (RuntimeError, TypeError):
        pass
    else:
        raise AssertionError(path)
print(sorted(m for m in set(sys.modules) - before if m.startswith({SLOW})))
fast.explain()
print("sympy" in sys.modules)
"""


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")
def test_loading_and_calling_import_nothing_slow(tmp_path: Path, generator: torch.Generator) -> None:
    """With gradients and without, in any dtype; what a process that serves a model needs not, it does not import.

    (torch's own backward and assert_close import sympy.)
    """
    paths = []
    for name, (build, shape, dtype) in SERVED.items():
        x = random(generator, shape)
        torch.save(x, tmp_path / f"{name}.input")
        paths.append(str(tmp_path / name))
        fastgraph.save(fastgraph.optimize(build().eval(), (x,), dtype=dtype, verify=False), paths[-1])
    done = subprocess.run([sys.executable, "-c", SERVE, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]", "True"]


def test_gradients_where_some_regions_have_none(tmp_path: Path, generator: torch.Generator) -> None:
    model, x = PartlyFrozen().eval(), random(generator, (2, 3, 9, 9))
    fastgraph.save(fastgraph.optimize(model, (x,)), tmp_path / "model")
    loaded = fastgraph.load(tmp_path / "model")
    for module in (model, loaded):
        module(x)[:, 0].sum().backward()
    assert loaded.captured.is_outline
    ours, theirs = ({n: p.grad for n, p in m.named_parameters()} for m in (loaded, model))
    assert [n for n, g in ours.items() if g is not None] == ["head.weight", "head.bias"]
    assert all(g is None if theirs[n] is None else torch.allclose(g, theirs[n]) for n, g in ours.items())


def test_the_graph_is_made_once_whoever_asks_first(saved: Path) -> None:
    """In any mode of the caller's, in several threads, and not before."""
    x = torch.rand(2, 784)
    expected = fastgraph.load(saved)
    with torch.no_grad():
        result = expected(x)

    def under(*contexts: Any) -> Callable[[Any], Any]:
        def call(module: Any) -> None:
            with ExitStack() as stack:
                for context in contexts:
                    stack.enter_context(context() if callable(context) else context)
                module.explain()

        return call

    def in_threads(module: Any) -> None:
        with ThreadPoolExecutor(4) as pool:
            graphs = list(pool.map(lambda _: module.captured.graph_module, range(4)))
        assert len(set(map(id, graphs))) == 1

    ways: dict[str, Callable[[Any], Any]] = {
        "inference": under(torch.inference_mode),
        "autocast": under(lambda: torch.autocast("cpu", torch.bfloat16)),
        "meta": under(torch.device("meta")),
        "fake": under(FakeTensorMode),
        "vmap": lambda m: torch.testing.assert_close(torch.func.vmap(m)(x[None])[0], expected(x)),
        "grad": lambda m: torch.func.grad(lambda x: m(x)[:, 0].sum())(x),
        "make_fx": lambda m: make_fx(m)(x),
        "export": lambda m: torch.export.export(m, (x,)),
        "strict export": lambda m: torch.export.export(m, (x,), strict=True),
        "compile": lambda m: torch.compile(m, backend="eager", fullgraph=True)(x),
        "threads": in_threads,
    }
    for name, way in ways.items():
        loaded = fastgraph.load(saved)
        with torch.no_grad():
            assert torch.equal(loaded(x), result)
        assert loaded.captured.is_outline, name
        way(loaded)
        assert not loaded.captured.is_outline, name
        assert facts(loaded.captured.graph_module, {}) == facts(expected.captured.graph_module, {}), name
        assert list(loaded.explain()) == list(expected.explain()), name
        with torch.no_grad():
            assert torch.equal(loaded(x), result), name
        assert loaded(x).requires_grad, name
    torch.compiler.reset()


def test_the_outline_asks_what_the_graph_asks(tmp_path: Path) -> None:
    """Errors before anybody has asked for the graph are those that come afterwards."""
    fastgraph.save(fastgraph.optimize(nn.Linear(4, 2), (torch.ones(3, 4),)), tmp_path / "model")
    wrong = [torch.ones(4), torch.ones(2, 5), torch.ones(2, 4).double(), torch.ones(2, 4, device="meta")]
    wrong.append(torch.ones(2, 4).to_sparse())

    def errors(module: Any) -> list[str]:
        found = []
        for x in wrong:
            with pytest.raises((RuntimeError, TypeError)) as error:
                module(x)
            found.append(str(error.value))
        return found

    outline, whole = fastgraph.load(tmp_path / "model"), fastgraph.load(tmp_path / "model")
    whole.explain()
    fast = fastgraph.optimize(nn.Linear(4, 2), (torch.ones(3, 4),))
    assert outline.captured.inputs == fast.captured.inputs
    assert errors(outline) == errors(whole)
    assert outline.captured.is_outline


@pytest.mark.parametrize("what", ["another version", "an older file", "tensors without versions", "a graph in it"])
def test_what_is_rewritten_when_it_is_loaded(what: str, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    if what == "a graph in it":
        model, inputs = make("cond")
        fastgraph.save(fastgraph.optimize(model, inputs, verify=False), path)
    else:
        change = {
            "another version": lambda p: p["programs"][0]["rewritten"].update(rules="0.0.1, compiled kernels"),
            "an older file": lambda p: p["programs"][0].pop("rewritten"),
            "tensors without versions": lambda p: None,
        }[what]
        edited(saved, path, change)
        model, inputs = fastgraph.load(saved), (torch.rand(2, 784),)
    with torch.inference_mode(what == "tensors without versions"):
        loaded = fastgraph.load(path)
    assert loaded.captured.outline is None
    fused = any(row.is_fused for row in loaded.explain())
    assert not (fused and what == "tensors without versions")
    with torch.no_grad():
        torch.testing.assert_close(loaded(*inputs), model(*inputs))


def test_every_function_of_sizes_has_a_name() -> None:
    """What torch writes sizes with can be saved; what a file says can be checked without importing it."""
    import sympy
    from torch.utils._sympy import functions

    from fastgraph import kinds, values

    abstract = {"Application", "Expr", "LatticeOp", "MinMaxBase", "IntInfinity", "Basic"}
    ours = {n for n, k in vars(functions).items() if isinstance(k, type) and issubclass(k, sympy.Basic)}
    assert ours - abstract <= set(kinds.FUNCTIONS)
    assert set(values._CLASSES) == {*kinds.FUNCTIONS, kinds.CASE}
    assert all(kind.__name__ == name for name, kind in values._CLASSES.items() if name != kinds.CASE)


class UnrelatedBatches(nn.Module):
    """Nothing in the graph says that both inputs have the same batch; that of `y` decides about a view."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scaled = nn.functional.interpolate(self.norm(y), scale_factor=2)
        return scaled.reshape(-1, scaled.shape[-1])


@pytest.mark.parametrize("example", [1, 4])
def test_a_file_holds_batches_of_one_and_more_of_all_inputs(example: int, tmp_path: Path) -> None:
    model = UnrelatedBatches().eval()
    fast = fastgraph.optimize(model, (torch.randn(example, 3), torch.randn(example, 1, 16)))
    fastgraph.save(fast, tmp_path / "model.fastgraph")
    loaded = fastgraph.load(tmp_path / "model.fastgraph")
    with torch.no_grad():
        for batch in (1, 2, 3, 17):
            x, y = torch.randn(batch, 3), torch.randn(batch, 1, 16)
            torch.testing.assert_close(loaded(x, y), model(x, y))
