"""The grid of convolutions and the zoo's networks in ``make perf``: their cells, their targets, the summary."""

from dataclasses import replace

import pytest
import torch

from fastgraph.bench.perf import conv, targets
from fastgraph.bench.perf.conv import LAYERS, Layer
from fastgraph.bench.perf.result import Result
from fastgraph.bench.zoo.table import ZOO
from tests.bench_samples import case_report


def test_the_grid_has_every_layer_at_every_batch() -> None:
    cells = conv.grid()
    assert len({target.case.name for target in cells}) == len(cells) == len(LAYERS) * len(conv.BATCHES)
    assert [target.case.batch for target in conv.grid(quick=True)] == [1] * len(LAYERS)
    assert {layer.kind for layer in LAYERS} == conv.RATIOS.keys()
    named = {layer.name for layer in LAYERS}
    assert {"3x3 64→64 @56", "3x3 512→512 @7", "depthwise 3x3/2 96 @112", "stem 7x7/2 3→64 @224"} <= named


def test_it_has_to_be_asked_for() -> None:
    assert not any(target.group in ("conv", "zoo") for target in targets.choose([], "fp32"))
    assert {target.case.batch for target in targets.choose(["conv:16"], "fp32")} == {16}
    assert targets.choose(["conv", "zoo"], "bf16") == []
    assert {"conv", "conv:1", "zoo", "zoo:64"} <= set(targets.names())


@pytest.mark.parametrize("kind", list(conv.RATIOS))
def test_a_cell_is_a_convolution_with_batch_norm_and_relu(kind: str) -> None:
    layer = next(layer for layer in reversed(LAYERS) if layer.kind == kind)
    built = conv.build_layer(layer, 2)
    convolution, norm, _ = built.model
    assert built.x.shape == (2, layer.inputs, layer.size, layer.size)
    assert convolution.groups == (layer.inputs if kind == "depthwise" else 1)
    with torch.no_grad():
        y = built.model(built.x)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        expected = torch.relu(convolution(built.x) * scale[:, None, None] + shift[:, None, None])
    assert y.shape == (2, layer.outputs, *[-(-layer.size // layer.stride)] * 2)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert (y > 0).float().mean() > 0.2


def test_every_network_of_the_zoo_has_a_target() -> None:
    by_name = {target.case.name: target.ratio for target in targets.choose(["zoo"], "fp32")}
    assert len(by_name) == sum(len(entry.batches) for entry in ZOO.values())
    assert min(ratio for ratio in by_name.values() if ratio is not None) >= 0.97
    assert None not in by_name.values()
    assert (by_name["CIFAR VGG, batch 1"], by_name["CIFAR VGG, batch 64"]) == (1.3, 1.1)
    assert (by_name["NeRF, batch 1024"], by_name["ResNet-18, batch 1"]) == (1.05, 1.35)


def result(layer: Layer, ratio: float | None, share: float) -> Result:
    """A cell with known figures."""
    report = replace(case_report(1), case=f"{layer.name}, batch 1")
    return Result(conv.GROUP, 2, "fp32", report, "onnxruntime", ratio, 1.1, "fma", share, None, None, None, None)


def test_the_summary_has_the_mean_and_the_worst() -> None:
    results = [result(LAYERS[0], 4.0, 1.2), result(LAYERS[-1], 1.0, 0.5), result(LAYERS[5], None, 0.7)]
    ((text, content),) = conv.summary(results)
    first, second = text.splitlines()
    assert first == (
        "conv, 2 threads: best peer / ours 2.00 (1.20) as geometric mean of 2 cases; "
        "worst 1.00 stem 3x3/2 3→32 @224, batch 1; 4.00 3x3 64→64 @56, batch 1"
    )
    assert second.startswith("  fma 70% as median of 3 cases; worst 50% stem 3x3/2 3→32 @224, batch 1; 70% ")
    assert (content["conv"], content["geometric_mean"]) == ("layers", pytest.approx(2.0))
    assert list(conv.summary([result(LAYERS[0], None, 0.5)])) == []
