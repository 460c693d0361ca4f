"""Graphs as data: exactly these nodes, with figures that can be checked by hand."""

import shutil
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import fastgraph
from fastgraph.capture import capture
from fastgraph.export import graphs
from fastgraph.export.graphs import compiled, inductor, text
from fastgraph.export.graphs.nodes import Edge, Graph, Node
from fastgraph.models import DeepLearningModel
from tests import pictures


def listed(graph: Graph) -> list[str]:
    return [f"{node.name}: {node.operator} {list(node.shape)} {node.dtype}" for node in graph.nodes]


def edges(graph: Graph) -> list[str]:
    return [f"{edge.source} > {edge.target}" for edge in graph.edges]


def test_deep_learning_model() -> None:
    picture = pictures.deep()
    assert listed(picture.eager) == [
        "x: input [1, 784] float32",
        "linear: linear [1, 512] float32",
        "relu: relu [1, 512] float32",
        "linear_1: linear [1, 256] float32",
        "relu_1: relu [1, 256] float32",
        "linear_2: linear [1, 10] float32",
        "softmax: softmax.int [1, 10] float32",
        "output: output [1, 10] float32",
    ]
    chain = ["x", "linear", "relu", "linear_1", "relu_1", "linear_2", "softmax", "output"]
    assert edges(picture.eager) == [f"{a} > {b}" for a, b in pairwise(chain)]
    assert listed(picture.rewritten) == [
        "x: input [1, 784] float32",
        "mlp_default: fastgraph.mlp [1, 10] float32",
        "output: output [1, 10] float32",
    ]
    assert edges(picture.rewritten) == ["x > mlp_default", "mlp_default > output"]
    model, x = DeepLearningModel.pretrained(), torch.rand(1, 784)
    kernels = inductor.kernels(capture(model, (x,)).graph_module, [x])
    assert [node.operator for node in kernels.nodes] == [
        *("library addmm", "loop relu", "library addmm", "loop relu", "library addmm"),
        *("loop amax", "loop exp sub sum", "loop div"),
    ]
    assert [node.origins for node in kernels.nodes][-2:] == [("softmax",), ("softmax",)]


def test_net() -> None:
    picture = pictures.net()
    assert listed(picture.eager) == [
        "x: input [1, 3, 720, 480] float32",
        "conv2d: conv2d [1, 16, 718, 478] float32",
        "relu: relu [1, 16, 718, 478] float32",
        "max_pool2d: max_pool2d [1, 16, 358, 238] float32",
        "view: view [5728, 238] float32",
        "linear: linear [5728, 120] float32",
        "relu_1: relu [5728, 120] float32",
        "linear_1: linear [5728, 1] float32",
        "relu_2: relu [5728, 1] float32",
        "sigmoid: sigmoid [5728, 1] float32",
        "relu_3: relu [5728, 1] float32",
        "output: output [5728, 1] float32",
    ]
    assert listed(picture.rewritten) == [
        "x: input [1, 3, 720, 480] float32",
        "conv_pool_mlp_default: fastgraph.conv_pool_mlp [5728, 1] float32",
        "output: output [5728, 1] float32",
    ]
    ((fused, names),) = picture.regions()
    assert fused.name == "conv_pool_mlp_default"
    assert names == tuple(node.name for node in picture.eager.nodes[1:-1])
    assert [(node.operator, node.origins) for node in picture.inductor.nodes] == [
        ("layout for convolution", ("conv2d",)),
        ("layout for convolution", ("conv2d",)),
        ("library convolution", ("conv2d",)),
        ("loop max_pool2d_with_indices relu", ("max_pool2d", "relu")),
        ("library addmm", ("linear",)),
        ("loop relu", ("relu_1",)),
        ("library addmm", ("linear_1",)),
        ("loop relu sigmoid", ("relu_2", "relu_3", "sigmoid")),
    ]
    assert [node.flops for node in picture.inductor.nodes] == [
        *(0, 0, 2 * 16 * 27 * 718 * 478),  # arranging operands computes nothing
        16 * 718 * 478 + 9 * 16 * 358 * 238,
        *(2 * 5728 * 238 * 120, 5728 * 120, 2 * 5728 * 120, 3 * 5728),
    ]
    assert edges(picture.inductor)[:3] == ["op0 > op2", "op1 > op2", "op2 > op3"]


def test_figures_are_those_of_the_formulas() -> None:
    conv, relu, pool, view, linear = pictures.net().eager.nodes[1:6]
    pixels = 718 * 478
    assert conv.flops == 2 * 16 * 3 * 3 * 3 * pixels
    assert conv.bytes == 4 * (3 * 720 * 480 + 16 * 3 * 3 * 3 + 16 + 16 * pixels)
    assert conv.parameters == ("conv1.weight", "conv1.bias")
    assert (relu.flops, relu.bytes) == (16 * pixels, 2 * 4 * 16 * pixels)
    assert pool.flops == 9 * 16 * 358 * 238
    assert (view.flops, view.bytes) == (0, 0)
    assert linear.flops == 2 * 5728 * 238 * 120
    (fused,) = (node for node in pictures.net().rewritten.nodes if node.flops)
    without_dead_relu = sum(node.flops for node in pictures.net().eager.nodes) - 5728
    assert fused.flops == without_dead_relu
    assert fused.bytes == 4 * (3 * 720 * 480 + 5728 + 16 * 27 + 16 + 120 * 238 + 120 + 120 + 1)


def test_times_on_request() -> None:
    picture = pictures.deep()
    for graph in (picture.eager, picture.rewritten):
        timed = [node for node in graph.nodes if node.seconds is not None]
        assert [node.operator for node in timed] == [node.operator for node in graph.nodes[1:-1]]
        assert all(node.seconds > 0 for node in timed)  # type: ignore[operator]
        assert sum(graph.share(node) or 0 for node in timed) == pytest.approx(1)
    assert sum(picture.heat(node) for node in picture.eager.nodes) == pytest.approx(1)
    assert any("median of" in note for note in picture.notes)
    assert pictures.net().eager.seconds is None
    assert len(pictures.net().notes) == 1


def test_an_optimized_module_is_drawn_as_it_is_and_in_its_dtype() -> None:
    x = torch.rand(3, 784)
    half = fastgraph.optimize(DeepLearningModel.pretrained(), (x,), dtype=torch.float16)
    picture = graphs.draw(half, (x,), name="half", measured=True)
    assert picture.name == "half"
    assert [node.dtype for node in picture.rewritten.nodes] == ["float32", *["float16"] * 7, "float32", "float32"]
    assert [node.origins for node in picture.rewritten.nodes][1] == ()


def test_loops_in_one_function_are_one_node() -> None:
    def node(name: str, operator: str, *origins: str, flops: int) -> Node:
        return Node(name, operator, (flops,), "float32", flops=flops, bytes=4, origins=origins)

    apart = Graph(
        "g",
        (
            node("op0", "library addmm", "linear", flops=7),
            node("op1", "loop amax", "softmax", flops=1),
            node("op2_op3", "loop exp sub", "softmax", "relu", flops=2),
        ),
        (Edge("op0", "op1"), Edge("op0", "op2_op3"), Edge("op1", "op2_op3")),
    )
    together = compiled.joined(apart, {"op1": "cpp_fused_0", "op2": "cpp_fused_0", "op3": "cpp_fused_0"})
    assert together.edges == (Edge("op0", "cpp_fused_0"),)
    assert (together.nodes[0].name, together.nodes[0].operator) == ("op0", "library addmm")
    assert together.nodes[1] == Node(
        "cpp_fused_0", "loop amax exp sub", (2,), "float32", flops=3, bytes=8, origins=("softmax", "relu")
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler for Inductor's code")
def test_inductors_kernels_have_times_by_the_function() -> None:
    graph = pictures.deep().inductor
    assert [node.operator for node in graph.nodes] == [
        *("library addmm", "loop relu", "library addmm", "loop relu", "library addmm", "loop amax exp sub sum div"),
    ]
    assert all(node.seconds is not None and node.seconds > 0 for node in graph.nodes)
    assert sum(graph.share(node) or 0 for node in graph.nodes) == pytest.approx(1)
    assert graph.nodes[0].seconds > graph.nodes[1].seconds  # type: ignore[operator]  # 800,000 operations and 512
    assert any("by torch's profiler" in note for note in pictures.deep().notes)


def test_why_inductors_kernels_have_no_times_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = capture(nn.Linear(2, 2).eval(), (torch.rand(1, 2),)).graph_module, torch.rand(1, 2)
    with pytest.raises(RuntimeError, match="only those on the CPU are"):
        compiled.Compiled(module, [x.to("meta")])
    timed = compiled.Compiled(module, [x])
    timed.graph = Graph("not what ran", (Node("cpp_fused_relu_0", "loop relu", (), ""),))
    with pytest.raises(RuntimeError, match="the profiler saw graph_"):
        timed.seconds([x])

    def fail(*_: object) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    picture = graphs.draw(nn.Linear(2, 2).eval(), (x,), measured=True)
    assert picture.notes[-1] == ("Inductor's kernels are not timed: Inductor gave up: RuntimeError: no compiler.")
    assert picture.inductor.missing == "Inductor gave up: RuntimeError: no compiler"


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y + y.mean()


def test_what_is_computed_of_parameters_once_is_no_node() -> None:
    picture = graphs.draw(Normalised().eval(), (torch.rand(1, 2, 4, 4),))
    assert [node.operator for node in picture.rewritten.nodes] == ["input", "conv2d", "mean", "add.Tensor", "output"]
    conv = picture.rewritten.nodes[1]
    assert conv.origins == ("conv2d", "batch_norm")
    assert set(conv.parameters) == {
        *("conv.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    }
    assert ("conv2d", "batch_norm") in [names for _, names in picture.regions()]


def test_why_inductor_made_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    captured = capture(nn.Linear(2, 2).eval(), (torch.rand(1, 2),))
    graph = inductor.kernels(captured.graph_module, [torch.rand(1, 2)])
    assert graph.nodes == ()
    assert graph.missing == "Inductor gave up: RuntimeError: no compiler"


@pytest.mark.parametrize(
    ("number", "expected"), [(12, "12 B"), (1234, "1.23 kB"), (5.5e6, "5.5 MB"), (2e9, "2 GB"), (3e12, "3 TB")]
)
def test_counts_have_three_digits_and_a_prefix(number: float, expected: str) -> None:
    assert text.count(number, "B") == expected


@pytest.mark.parametrize(("value", "expected"), [(2.0, "2 s"), (0.0543, "54.3 ms"), (1.5e-6, "1.5 µs")])
def test_times_have_three_digits_and_a_unit(value: float, expected: str) -> None:
    assert text.seconds(value) == expected


def test_totals() -> None:
    node = Node("a", "relu", (2,), "float32", flops=2, bytes=16, seconds=0.002)
    graph = Graph("g", (Node("x", "input", (2,), "float32"), node))
    assert text.total(graph) == "1 step · 2 ms · 2 FLOP · 16 B"
    assert text.figures(graph, node) == "2 ms (100 %) · 2 FLOP · 16 B"
